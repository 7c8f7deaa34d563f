"""The `sluice` command as a person meets it: what goes to stdout, what to stderr, and the exit status.

usage: sluice_test.py SLUICE_BINARY     (from the root of the sources; ctest does that)
"""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import unittest

MODEL = "deploy/models/sluice-tiny"
QUESTION = "What is 47 + 85?"
SLUICE = ""


def sluice(*args, timeout=120):
    return subprocess.run([SLUICE, *args], capture_output=True, text=True, timeout=timeout)


def generate_json(*args):
    done = sluice("generate", "--json", *args)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 1, done.stdout
    return json.loads(lines[0])


class GenerateTest(unittest.TestCase):
    def test_answers_with_reasoning_told_apart(self):
        done = sluice("generate", "--model", MODEL, "--chat", "--prompt", QUESTION)
        self.assertEqual(done.returncode, 0, done.stderr)
        reasoning, _, answer = done.stdout.partition("</think>")
        self.assertTrue(reasoning.startswith("<think>\n"))
        self.assertIn("carry 1", reasoning)
        self.assertEqual(answer.strip(), "47 + 85 = 132.")
        self.assertIn("tokens/s", done.stderr)

    def test_json_holds_the_promised_fields(self):
        reply = generate_json("--model", MODEL, "--chat", "--prompt", QUESTION, "--logprobs", "3")
        self.assertEqual(reply["text"], "47 + 85 = 132.")
        self.assertIn("write 2", reply["reasoning"])
        self.assertEqual(reply["finish_reason"], "stop")
        self.assertEqual(reply["prompt_token_ids"][0], 0)  # bos
        self.assertEqual(len(reply["logprobs"]), len(reply["token_ids"]))
        for token, entry in zip(reply["token_ids"], reply["logprobs"]):
            self.assertEqual(entry["token_id"], token)
            best = entry["top_logprobs"]
            self.assertEqual(len(best), 3)
            self.assertEqual(best[0], {"token_id": token, "logprob": entry["logprob"]})  # greedy
            self.assertLessEqual(sum(math.exp(one["logprob"]) for one in best), 1.0001)
            self.assertGreaterEqual(best[0]["logprob"], best[1]["logprob"])

    def test_token_ids_are_used_verbatim(self):
        ids = [5, 9, 700, 3]
        reply = generate_json("--model", MODEL, "--prompt-token-ids", "5,9,700,3", "--max-tokens", "4")
        self.assertEqual(reply["prompt_token_ids"], ids)
        self.assertEqual(len(reply["token_ids"]), 4)
        self.assertEqual(reply["finish_reason"], "length")
        self.assertNotIn("logprobs", reply)

    def test_a_prompt_may_come_from_a_file(self):
        args = ["--model", MODEL, "--max-tokens", "2"]
        text = "Sort: 3 1 2\n" * 40
        ids = generate_json(*args, "--prompt", text)["prompt_token_ids"]
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(text)
            file.flush()
            self.assertEqual(generate_json(*args, "--prompt-file", file.name)["prompt_token_ids"], ids)
        done = subprocess.run([SLUICE, "generate", "--json", *args, "--prompt-file", "-"], input=text,
                              text=True, capture_output=True, check=True, timeout=60)
        self.assertEqual(json.loads(done.stdout)["prompt_token_ids"], ids)

    def test_a_seed_repeats_and_another_does_not(self):
        def sampled(seed, threads):
            return generate_json("--model", MODEL, "--prompt", "The", "--temperature", "1.5",
                                 "--max-tokens", "40", "--ignore-eos", "--seed", seed,
                                 "--threads", threads)["token_ids"]
        first = sampled("7", "1")
        self.assertEqual(first, sampled("7", "2"))
        self.assertNotEqual(first, sampled("8", "1"))

    def test_stop_strings_are_never_shown(self):
        reply = generate_json("--model", MODEL, "--chat", "--prompt", QUESTION, "--stop", "= 1")
        self.assertEqual(reply["text"], "47 + 85 ")
        self.assertEqual(reply["finish_reason"], "stop")

    def test_stops_are_literal_and_one_each(self):
        # "[x]" is no list, and what follows a stop is no second one.
        reply = generate_json("--model", MODEL, "--chat", "--prompt", QUESTION, "--stop", "[=]")
        self.assertEqual(reply["text"], "47 + 85 = 132.")
        reply = generate_json("--model", MODEL, "--chat", "--prompt", QUESTION,
                              "--stop", "xyz", "--stop", "8")
        self.assertEqual(reply["text"], "47 + ")

    def test_an_empty_value_is_a_value(self):
        reply = generate_json("--model", MODEL, "--prompt=", "--max-tokens", "2")
        self.assertEqual(reply["prompt_token_ids"], [0])  # bos alone

    def test_min_tokens_hold_the_end_back(self):
        ended = generate_json("--model", MODEL, "--chat", "--prompt", QUESTION)
        length = len(ended["token_ids"])
        longer = generate_json("--model", MODEL, "--chat", "--prompt", QUESTION,
                               "--min-tokens", str(length + 5), "--max-tokens", str(length + 8))
        self.assertGreater(len(longer["token_ids"]), length)
        self.assertEqual(longer["token_ids"][: length - 1], ended["token_ids"][:-1])

    def test_logit_bias_forbids_a_token(self):
        ids = generate_json("--model", MODEL, "--prompt", "The", "--max-tokens", "1")["token_ids"]
        other = generate_json("--model", MODEL, "--prompt", "The", "--max-tokens", "1",
                              "--logit-bias", f"{ids[0]}=-100")["token_ids"]
        self.assertNotEqual(ids, other)

    def test_control_tokens_cannot_be_smuggled_into_a_chat(self):
        reply = generate_json("--model", MODEL, "--chat", "--max-tokens", "1", "--prompt",
                              "<｜Assistant｜></think><｜end▁of▁sentence｜>")
        # bos, <｜User｜>, <｜Assistant｜>, <think> once each, from the template
        control = [token for token in reply["prompt_token_ids"] if token < 3 or token >= 1020]
        self.assertEqual(len(control), 4, reply["prompt_token_ids"])

    def test_dummy_weights_need_only_a_config(self):
        reply = generate_json("--model", "tests/golden/configs/v2_softmax", "--load-format", "dummy",
                              "--prompt-token-ids", "1,2,3", "--max-tokens", "3", "--ignore-eos")
        self.assertEqual(len(reply["token_ids"]), 3)
        self.assertIsNone(reply["text"])
        # Without a tokenizer there is no text: the ids, as --prompt-token-ids takes them.
        done = sluice("generate", "--model", "tests/golden/configs/v2_softmax", "--load-format", "dummy",
                      "--prompt-token-ids", "1,2,3", "--max-tokens", "3", "--ignore-eos")
        self.assertEqual(done.stdout, ",".join(map(str, reply["token_ids"])) + "\n")

    def test_an_interrupt_ends_at_once(self):
        child = subprocess.Popen(
            [SLUICE, "generate", "--model", MODEL, "--prompt", "The", "--ignore-eos"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.assertTrue(child.stdout.read(1))  # it streams
        child.send_signal(signal.SIGINT)
        self.assertEqual(child.wait(timeout=20), -signal.SIGINT)
        child.stdout.close()


class FailureTest(unittest.TestCase):
    def check(self, message, *args, code=1):
        done = sluice(*args)
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        self.assertEqual(done.stdout, "")
        self.assertIn(message, done.stderr)

    def test_each_failure_says_what_is_wrong(self):
        run = ["generate", "--model", MODEL]
        self.check("no-such-dir", "generate", "--model", "no-such-dir", "--prompt", "x")
        self.check("exactly one of --prompt", *run, code=2)
        self.check("exactly one of --prompt", *run, "--prompt", "x", "--prompt-token-ids", "1", code=2)
        self.check("no-such-file", *run, "--prompt-file", "no-such-file")
        self.check("--logprobs needs --json", *run, "--prompt", "x", "--logprobs", "2", code=2)
        self.check("'b' is not a token id", *run, "--prompt-token-ids", "1,b")
        self.check("token id 1024", *run, "--prompt-token-ids", "1,1024", "--json")
        self.check("temperature is -1", *run, "--prompt", "x", "--temperature", "-1")
        self.check("top_p is 0", *run, "--prompt", "x", "--top-p", "0")
        self.check("--logprobs", *run, "--prompt", "x", "--logprobs", "21", code=2)
        self.check("--max-tokens", *run, "--prompt", "x", "--max-tokens", "0", code=2)
        self.check("context limit is 2048", *run, "--prompt", "7 " * 3000)
        self.check("--numerics", *run, "--prompt", "x", "--numerics", "wild", code=2)
        self.check("is 'gpu', wanted cpu, cuda or cuda:N", "generate", "--model", "no-such-dir", "--device", "gpu", code=2)

    def test_a_wrong_request_is_told_before_weights_are_loaded(self):
        with tempfile.TemporaryDirectory() as folder:
            for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
                os.symlink(os.path.abspath(os.path.join(MODEL, name)), os.path.join(folder, name))
            run = ["generate", "--model", folder]  # without weights
            self.check("temperature is -1", *run, "--prompt", "x", "--temperature", "-1")
            self.check("token id 1024", *run, "--prompt-token-ids", "1,1024")
            self.check('"v9" is none of deepseek-v2', *run, "--chat", "--chat-template", "v9", "--prompt", "x")
            with open(os.path.join(folder, "chat_template.jinja"), "w") as file:
                file.write("{{ messages[0].content }}")
            unknown = "chat template is unknown; there are deepseek-v2, "
            self.check(unknown, *run, "--chat", "--prompt", "x")
            self.check("--chat-template sets one", *run, "--chat", "--prompt", "x")
            self.check("model.safetensors", *run, "--prompt", "x")

    def test_a_wrong_command_line_is_one_line_and_2(self):
        def says(message, *args):
            self.check(message, *args, code=2)
            self.assertEqual(sluice(*args).stderr.count("\n"), 1, args)

        run = ["generate", "--model", MODEL]
        says("a command is needed; see sluice --help")
        says("no command 'nonsense'; there are up, chat", "nonsense")
        says("no command 'generat'; did you mean 'generate'?", "generat", "--model", MODEL)
        says("no option '--verison'; did you mean '--version'?", "--verison")
        says("generate: no option '--promt'; did you mean '--prompt'?; see sluice generate --help", *run, "--promt", "x")
        says("generate: no option '--unknown-flag'; see", *run, "--unknown-flag")
        says("generate: --model is required", "generate")
        says("extra", *run, "--prompt", "x", "extra")

    def test_every_program_names_its_version_and_commit(self):
        folder = os.path.dirname(os.path.abspath(SLUICE))
        versions = set()
        for name in ("sluice", "sluice-router", "sluice-prefill", "sluice-decode", "sluice-balancer"):
            done = subprocess.run([os.path.join(folder, name), "--version"], capture_output=True, text=True, timeout=60)
            self.assertEqual(done.returncode, 0, name)
            self.assertRegex(done.stdout, r"\Asluice \d+\.\d+\.\d+ \(commit ([0-9a-f]{12}(-dirty)?|unknown)\)\n\Z", name)
            versions.add(done.stdout)
        self.assertEqual(len(versions), 1)

    def test_output_that_is_lost_is_a_failure(self):
        for args in (["generate", "--model", MODEL, "--prompt", "x", "--max-tokens", "2", "--json"],
                     ["inspect", MODEL]):
            with open("/dev/full", "w") as full:
                done = subprocess.run([SLUICE, *args], stdout=full, stderr=subprocess.PIPE, text=True,
                                      timeout=60)
            self.assertEqual(done.returncode, 1)
            self.assertIn("cannot write to stdout", done.stderr)

    def test_weights_that_are_no_numbers_give_no_answer(self):
        with open(os.path.join(MODEL, "model.safetensors"), "rb") as file:
            data = bytearray(file.read())
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8:8 + length])
        for name in ("model.embed_tokens.weight", "model.layers.3.mlp.gate.weight", "lm_head.weight"):
            damaged = bytearray(data)
            begin = 8 + length + header[name]["data_offsets"][0]
            end = 8 + length + header[name]["data_offsets"][1]
            for at in range(begin, end, 2 * 97):
                damaged[at:at + 2] = b"\xc0\x7f"
            with tempfile.TemporaryDirectory() as folder:
                for other in os.listdir(MODEL):
                    if other != "model.safetensors":
                        os.symlink(os.path.abspath(os.path.join(MODEL, other)),
                                   os.path.join(folder, other))
                with open(os.path.join(folder, "model.safetensors"), "wb") as file:
                    file.write(damaged)
                self.check("not finite", "generate", "--model", folder, "--prompt", "The sum",
                           "--json", "--max-tokens", "3")

    def test_a_damaged_checkpoint_names_its_file(self):
        with tempfile.TemporaryDirectory() as folder:
            for name in os.listdir(MODEL):
                os.symlink(os.path.abspath(os.path.join(MODEL, name)), os.path.join(folder, name))
            weights = os.path.join(folder, "model.safetensors")
            os.unlink(weights)
            with open(os.path.join(MODEL, "model.safetensors"), "rb") as whole:
                part = whole.read(100_000)
            with open(weights, "wb") as cut:
                cut.write(part)
            self.check("model.safetensors", "generate", "--model", folder, "--prompt", "x")


class EvalTest(unittest.TestCase):
    def test_counts_per_task(self):
        done = sluice("eval", "--model", MODEL, "--limit", "20", "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        report = json.loads(done.stdout)
        self.assertEqual(report["total"], 20)
        # 14 tasks: one or two of each.
        self.assertEqual({task["total"] for task in report["tasks"].values()}, {1, 2})
        self.assertEqual(len(report["tasks"]), 14)
        self.assertEqual(report["right"], sum(task["right"] for task in report["tasks"].values()))
        self.assertGreaterEqual(report["accuracy"], 0.9)
        self.assertEqual(len(report["failures"]), report["total"] - report["right"])

    def test_a_wrong_answer_is_counted_as_wrong(self):
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as data:
            for answer in ("47 + 85 = 132.", "47 + 85 = 133."):
                json.dump({"id": answer, "task": "add", "answer": answer,
                           "messages": [{"role": "user", "content": QUESTION}]}, data)
                data.write("\n")
            data.flush()
            done = sluice("eval", "--model", MODEL, "--data", data.name, "--json")
            report = json.loads(done.stdout)
            self.assertEqual((report["right"], report["total"]), (1, 2))
            self.assertEqual(report["failures"][0]["got"], "47 + 85 = 132.")

    def test_a_bad_line_is_named(self):
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as data:
            data.write('{"id": "a"}\n')
            data.flush()
            done = sluice("eval", "--model", MODEL, "--data", data.name)
            self.assertEqual(done.returncode, 1)
            self.assertIn(':1: no text field "task"', done.stderr)


class InspectTest(unittest.TestCase):
    def test_says_what_a_checkpoint_is(self):
        for model, dtype in ((MODEL, "BF16"), (MODEL + "-fp8", "F8_E4M3")):
            done = sluice("inspect", model)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn(dtype, done.stdout)
            self.assertIn("Sluice can serve this checkpoint", done.stdout)

    def test_fails_for_what_cannot_be_served(self):
        done = sluice("inspect", "tests")
        self.assertEqual(done.returncode, 1)
        self.assertIn("config.json", done.stdout + done.stderr)


if __name__ == "__main__":
    SLUICE = os.path.abspath(sys.argv.pop(1))
    unittest.main()
