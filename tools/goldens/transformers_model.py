"""transformers' float32 model of a checkpoint, with what the goldens need read out of it."""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

transformers.utils.logging.disable_progress_bar()

_CLASSES = {
    "deepseek_v2": transformers.DeepseekV2ForCausalLM,
    "deepseek_v3": transformers.DeepseekV3ForCausalLM,
}


def load(config, weights):
    """The model with these weights (name -> f32 array): written as a checkpoint, then loaded."""
    config = {k: v for k, v in config.items() if k != "quantization_config"}
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "config.json").write_text(json.dumps(config))
        save_file(weights, Path(directory) / "model.safetensors", metadata={"format": "pt"})
        model, info = _CLASSES[config["model_type"]].from_pretrained(
            directory,
            dtype=torch.float32,
            attn_implementation="eager",
            experts_implementation="eager",
            output_loading_info=True,
        )
    problems = {k: v for k, v in info.items() if v and k != "error_msgs"}
    if problems:
        raise ValueError(f"transformers did not take the weights as they are: {problems}")
    return model.eval()


class Recording:
    """Hidden states after each layer and the experts chosen, of the next forward pass."""

    def __init__(self, model):
        self._hidden, self._experts, self._hooks = [], [], []
        for layer in model.model.layers:
            self._hooks.append(layer.register_forward_hook(self._on_layer))
            if hasattr(layer.mlp, "gate"):
                self._hooks.append(layer.mlp.gate.register_forward_hook(self._on_gate))

    def _on_layer(self, module, inputs, output):
        self._hidden.append((output if torch.is_tensor(output) else output[0])[0].numpy())

    def _on_gate(self, module, inputs, output):
        logits, _, ids = output
        if hasattr(module, "e_score_correction_bias"):
            scores = logits.sigmoid() + module.e_score_correction_bias
        else:
            scores = logits.softmax(-1)
        chosen = scores.gather(1, ids)
        if chosen.min() <= 0:
            raise ValueError("a kept score is not positive: older transformers would choose others")
        order = chosen.argsort(dim=-1, descending=True, stable=True)
        self._experts.append(ids.gather(1, order).numpy().astype(np.int32))

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        for hook in self._hooks:
            hook.remove()

    @property
    def hidden(self):  # [layers, tokens, hidden]
        return np.stack(self._hidden)

    @property
    def experts(self):  # [MoE layers, tokens, top_k], by falling score
        return np.stack(self._experts)


@torch.no_grad()
def greedy(model, ids, steps, eos=None):
    """(tokens, margins, logprobs) of greedy decoding with a KV cache; margin = best - second.

    Ends after `steps` tokens, or with `eos`.
    """
    tokens, margins, logprobs = [], [], []
    output = model(torch.tensor(ids)[None].long(), use_cache=True)
    for _ in range(steps):
        logits = output.logits[0, -1]
        best = logits.topk(2).values
        tokens.append(int(logits.argmax()))
        margins.append(float(best[0] - best[1]))
        logprobs.append(float(logits.log_softmax(-1).max()))
        if tokens[-1] == eos:
            break
        output = model(
            torch.tensor([[tokens[-1]]]), past_key_values=output.past_key_values, use_cache=True
        )
    return np.array(tokens, np.int32), np.array(margins, np.float32), np.array(logprobs, np.float32)
