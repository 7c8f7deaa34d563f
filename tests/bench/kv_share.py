"""What the way from prefill to decode adds to the first tokens of a prompt.

The same prompts go in turns to two clusters of real instances with the shipped model, one thread
each: to one mixed instance, which keeps its KV, and to a prefill that sends it to a decode, over the
transport that the two choose. What the second takes longer is what KV transfer costs: gathering
pages layer by layer while computing, checksums on both sides, and for the second token the wait
until all has come.
"""

import http.client
import json
import random
import statistics
import time

from cluster import Cluster

PROMPT_TOKENS = 1900
VOCABULARY = range(3, 1000)  # without control tokens


def token_times(address, prompt, tokens):
    """Seconds from the request to each token."""
    connection = http.client.HTTPConnection(address, timeout=60)
    body = json.dumps({"prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "temperature": 0,
                       "return_token_ids": True, "stream": True})
    times, ids, begin = [], [], time.monotonic()
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200, response.read()
    for line in response:
        if not line.startswith(b"data: {"):
            continue
        for choice in json.loads(line[6:])["choices"]:
            for token in choice.get("token_ids") or []:
                times.append(time.monotonic() - begin)
                ids.append(token)
    connection.close()
    assert len(ids) == tokens, f"{len(ids)} tokens of {tokens}"
    return times, ids


def measure(bin_dir, turns):
    """Rows of (what, bar, measured, whether it holds)."""
    seed = 1
    rng = random.Random(seed)
    kept, sent = [], []
    balancer = {"balancer": {"enabled": False}}
    with Cluster(bin_dir, prefill=0, decode=0, mixed=1, sections=balancer) as mixed, \
         Cluster(bin_dir, sections=balancer) as pair:
        for turn in range(turns + 1):  # the first warms up
            prompt = rng.choices(VOCABULARY, k=PROMPT_TOKENS)
            order = [(mixed, kept), (pair, sent)]
            answers = []
            for cluster, times in order if turn % 2 == 0 else reversed(order):
                seconds, ids = token_times(cluster.http, prompt, 4)
                answers.append(ids)
                if turn > 0:
                    times.append(seconds)
            assert answers[0] == answers[1], f"seed {seed}, turn {turn}: {answers}"
        bytes_sent = pair.metric("sluice_router_kv_transfer_bytes_total")
    shares = sorted(with_it[0] / without[0] - 1 for with_it, without in zip(sent, kept))
    added, quarter = statistics.median(shares), len(shares) // 4
    first = [statistics.median(times[0] for times in all_times) for all_times in (kept, sent)]
    wait = statistics.median((b[1] - b[0]) - (a[1] - a[0]) for a, b in zip(kept, sent))
    return [(f"what KV transfer and checksums add to the TTFT of {PROMPT_TOKENS} tokens, median of {turns} turns", "5 %",
             f"{added:+.1%}, the middle half {shares[quarter]:+.1%} to {shares[-1 - quarter]:+.1%}: "
             f"{first[1] * 1e3:.1f} ms with transfer, {first[0] * 1e3:.1f} ms without; "
             f"{bytes_sent / (turns + 1) / 2**20:.1f} MiB a prompt", added < 0.05),
            ("what the second token waits longer for it, as a share of the TTFT", "",
             f"{wait / first[0]:+.1%}, {wait * 1e3:.1f} ms", True)]
