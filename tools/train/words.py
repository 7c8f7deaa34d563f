"""Word lists shared by the problem generator and the prose generator.

Why it exists: the lists are data, not logic; keeping them apart keeps the generators readable.
"""

NAMES = """Ada Anna Ben Carl Clara Dan Dora Emma Eva Finn Greta Hugo Ida Ivan Jane Jonas Julia Karl Lara Leo Lena Lily
Mara Max Mia Milo Nina Noah Nora Olga Oscar Paul Petra Rosa Ruth Sam Sara Simon Tara Theo Tom Uma Vera Victor Wanda
Will Yara Zoe""".split()

ITEMS = """apples pears plums cherries lemons oranges books pencils stamps coins marbles shells stones cards tickets
cups plates candles flowers roses buttons bottles boxes bags cookies muffins eggs nuts beans balls""".split()

CITIES = """Paris London Berlin Rome Madrid Vienna Prague Lisbon Dublin Oslo Athens Cairo Tokyo Lima Quito Delhi
Seoul Bern Riga Sofia""".split()

COLORS = "red blue green yellow black white brown orange purple gray pink silver".split()

ANIMALS = """cat dog horse fox bear wolf rabbit mouse owl goat sheep duck swan tiger lion camel otter beaver raven
turtle""".split()

FOODS = "bread rice soup cheese pasta salad pizza curry honey butter cake stew beans fish apples tea".split()

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()

# Everyday words for the letter tasks.
WORDS = """about above across actor after again agree album alone amber anchor angle animal answer apple april arrow
autumn avenue bacon badge baker bakery balance ballet bamboo banana barrel basket battle beacon beauty berry bicycle
bishop blanket blossom bottle bottom branch bridge bright brother bubble bucket button cabin cactus camera candle
canyon carbon carpet carrot castle cattle cellar cement center cereal chance chapel cheese cherry circle circus clever
clock cloud coffee collar colony comet copper corner cotton county coral cousin credit cricket crystal cushion danger
daughter debate december desert dinner doctor dolphin dragon drawer dream driver eagle early earth editor effect
eleven empire engine energy escape evening example fabric factor falcon family farmer feather fellow fender finger
flower follow forest fossil fountain freedom friend frozen future galaxy garden garlic gentle giant ginger glacier
golden grammar gravity guitar hammer harbor harvest hazel heaven hollow honest hunger island jacket january jelly
journey jungle kettle kitchen ladder lantern lemon letter library little lizard magnet mango maple marble market
meadow melody memory message middle mirror monkey morning mountain museum napkin needle nephew number ocean office
onion orange orchard oxygen oyster paddle palace panda paper parade parrot pebble pencil people pepper piano pickle
pillow planet plastic pocket poetry potato powder pumpkin puzzle quartz rabbit raccoon radio rainbow ribbon river
rocket saddle salmon school secret shadow silver sister spider spring squirrel station stream street student sugar
summer sunset tablet teacher temple tennis theater thunder ticket timber tomato tractor travel tulip tunnel turtle
umbrella valley vanilla velvet village violin volcano wagon walnut water weather whisper window winter wizard yellow
zebra zipper strawberry mississippi""".split()

# Syllables for made-up words, so that the letter tasks can never be memorised.
ONSETS = "b c d f g h j k l m n p r s t v w z br cl dr fl gr pl st tr sh ch".split()
VOWELS = "a e i o u ai ea oo".split()
CODAS = ["", "", "", "n", "r", "s", "t", "l", "m", "nd", "st", "ck"]
