"""A cluster as the stock `openai` package sees it.

usage: openai_client.py URL     (http://127.0.0.1:8000; needs `pip install openai`, and a cluster of the tiny model)
"""

import sys
import unittest

import openai

QUESTION = [{"role": "user", "content": "What is 47 + 85?"}]
URL = ""


def client():
    return openai.OpenAI(base_url=URL + "/v1", api_key="EMPTY", max_retries=0, timeout=60)


class OpenAiClientTest(unittest.TestCase):
    def setUp(self):
        self.client = client()
        self.model = self.client.models.list().data[0].id

    def chat(self, **options):
        return self.client.chat.completions.create(
            model=self.model, messages=QUESTION, **{"temperature": 0, **options})

    def test_lists_models(self):
        card = self.client.models.retrieve(self.model)
        self.assertEqual(card.id, self.model)
        self.assertGreater(card.max_model_len, 0)

    def test_answers_with_reasoning_told_apart(self):
        answer = self.chat()
        message = answer.choices[0].message
        self.assertIn("132", message.content)
        self.assertIn("carry", message.reasoning_content)
        self.assertEqual(message.reasoning, message.reasoning_content)
        self.assertEqual(answer.choices[0].finish_reason, "stop")
        usage = answer.usage
        self.assertEqual(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens)
        self.assertGreater(usage.completion_tokens_details.reasoning_tokens, 0)

    def test_streams_the_same(self):
        whole = self.chat()
        reasoning, content, usage, ends = "", "", None, []
        for chunk in self.chat(stream=True, stream_options={"include_usage": True}):
            if chunk.usage is not None:
                self.assertEqual(chunk.choices, [])
                usage = chunk.usage
                continue
            delta = chunk.choices[0].delta
            content += delta.content or ""
            reasoning += getattr(delta, "reasoning_content", None) or ""
            ends.append(chunk.choices[0].finish_reason)
        self.assertEqual(content, whole.choices[0].message.content)
        self.assertEqual(reasoning, whole.choices[0].message.reasoning_content)
        self.assertEqual(usage.completion_tokens, whole.usage.completion_tokens)
        self.assertEqual(ends[-1], "stop")
        self.assertEqual(set(ends[:-1]), {None})

    def test_seeds_repeat(self):
        # The tiny model is sure of itself: only great heat makes it waver.
        def sample(seed):
            return self.chat(temperature=5, top_p=1, seed=seed, max_tokens=24).choices[0].message.reasoning

        self.assertEqual(sample(7), sample(7))
        self.assertGreater(len({sample(seed) for seed in range(4)}), 1)

    def test_gives_several_answers(self):
        answer = self.chat(n=3, temperature=5, top_p=1, max_tokens=16, seed=1)
        self.assertEqual([choice.index for choice in answer.choices], [0, 1, 2])
        self.assertGreater(len({choice.message.reasoning for choice in answer.choices}), 1)

    def test_stops(self):
        answer = self.chat(stop=["132"])
        self.assertEqual(answer.choices[0].finish_reason, "stop")
        self.assertNotIn("132", answer.choices[0].message.content)
        self.assertEqual(answer.choices[0].stop_reason, "132")

    def test_counts_logprobs(self):
        answer = self.chat(logprobs=True, top_logprobs=2, max_tokens=5)
        entries = answer.choices[0].logprobs.content
        self.assertEqual(len(entries), 5)
        for entry in entries:
            self.assertLessEqual(entry.logprob, 0)
            self.assertEqual(len(entry.top_logprobs), 2)
            self.assertEqual(entry.top_logprobs[0].token, entry.token)

    def test_completes_text(self):
        answer = self.client.completions.create(
            model=self.model, prompt=["What is", "Hello"], max_tokens=4, temperature=0, logprobs=1, n=1)
        self.assertEqual(len(answer.choices), 2)
        self.assertEqual(len(answer.choices[0].logprobs.tokens), answer.usage.completion_tokens - len(
            answer.choices[1].logprobs.tokens))

    def test_ignores_eos_when_asked(self):
        answer = self.chat(max_tokens=150, extra_body={"ignore_eos": True, "min_tokens": 150})
        self.assertEqual(answer.usage.completion_tokens, 150)
        self.assertEqual(answer.choices[0].finish_reason, "length")

    def test_errors_have_openais_types(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.chat(temperature=-1)
        self.assertEqual(caught.exception.param, "temperature")
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.chat.completions.create(
                model=self.model, messages=[{"role": "user", "content": "word " * 5000}])
        self.assertEqual(caught.exception.code, "context_length_exceeded")
        with self.assertRaises(openai.NotFoundError):
            self.client.chat.completions.create(model="another", messages=QUESTION)

    def test_cancelling_frees_the_server(self):
        stream = self.chat(stream=True, extra_body={"ignore_eos": True})
        next(iter(stream))
        stream.close()
        self.assertIn("132", self.chat().choices[0].message.content)


if __name__ == "__main__":
    URL = sys.argv.pop(1).rstrip("/")
    unittest.main()
