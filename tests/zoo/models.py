"""Tiny random models of the architectures that users bring, a line each."""

from __future__ import annotations

from typing import Any

import torch
import transformers

__all__ = ["DECODERS", "ENCODERS", "MODELS", "TASKS", "has_task", "make"]

VOCABULARY = 64
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
EXPERTS = {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
SEQ2SEQ = {"d_model": 32, "decoder_start_token_id": 0}

# From a name to a `model_type` of transformers and what its tiny config needs beside `SMALL`.
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "BERT": ("bert", {}),
    "RoBERTa": ("roberta", {"pad_token_id": 1}),
    "XLM-R": ("xlm-roberta", {"pad_token_id": 1}),
    "DeBERTa": ("deberta", {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    "DeBERTa v2": (
        "deberta-v2",
        {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8, "conv_kernel_size": 3},
    ),
    "DeBERTa v3": (
        "deberta-v2",
        {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "share_att_key": True, "position_buckets": 8},
    ),
    "ELECTRA": ("electra", {"embedding_size": 16}),
    "ALBERT": ("albert", {"embedding_size": 16}),
    "DistilBERT": ("distilbert", {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4}),
    "MPNet": ("mpnet", {"pad_token_id": 1}),
    "ModernBERT": ("modernbert", {"cls_token_id": 2, "sep_token_id": 3}),
    "XLNet": ("xlnet", {"max_position_embeddings": None, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}),
    "T5": ("t5", {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}),
    "BART": ("bart", {**SEQ2SEQ, **dict.fromkeys(["encoder_ffn_dim", "decoder_ffn_dim"], 48), "encoder_layers": 2,
                      "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4}),
}  # fmt: skip
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "GPT-NeoX": ("gpt_neox", {}),
    "OPT": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32, "pad_token_id": 1}),
    "BLOOM": ("bloom", {"n_layer": 2, "n_head": 4}),
    "Falcon": ("falcon", {"new_decoder_architecture": False}),
    "Llama": ("llama", GROUPED),
    "Llama, tied": ("llama", {**GROUPED, "tie_word_embeddings": True}),
    "Mistral": ("mistral", GROUPED),
    "Qwen2": ("qwen2", GROUPED),
    "Qwen3": ("qwen3", GROUPED),
    "Gemma": ("gemma", GROUPED),
    "Gemma 2": ("gemma2", GROUPED),
    "Gemma 3": ("gemma3_text", GROUPED),
    "Gemma 3, with vision": (
        "gemma3",
        {
            "text_config": {**SMALL, **GROUPED},
            "vision_config": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
                              "num_attention_heads": 2, "image_size": 16, "patch_size": 8},
            "mm_tokens_per_image": 4, "image_token_index": 60, "boi_token_index": 61, "eoi_token_index": 62,
        },
    ),
    "Phi-2": ("phi", {}),
    "Phi-3": ("phi3", {"num_key_value_heads": 2}),
    "SmolLM3": ("smollm3", GROUPED),
    "OLMo 2": ("olmo2", {"num_key_value_heads": 2}),
    "Granite": ("granite", {"num_key_value_heads": 2}),
    "StableLM": ("stablelm", {"num_key_value_heads": 2}),
    "GLM": ("glm", {**GROUPED, "partial_rotary_factor": 0.5}),
    "Mixtral": ("mixtral", {**GROUPED, "num_local_experts": 4}),
    "Qwen2-MoE": ("qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 40}),
    "Qwen3-MoE": ("qwen3_moe", EXPERTS),
    "GPT-OSS": ("gpt_oss", {**GROUPED, "num_local_experts": 4}),
    "Mamba": ("mamba", {"state_size": 8}),
    "LFM2": ("lfm2", {"num_key_value_heads": 2, "layer_types": ["conv", "full_attention"], "block_multiple_of": 8}),
}  # fmt: skip
MODELS = ENCODERS | DECODERS
# From a task to what transformers calls its heads.
TASKS = {
    "SequenceClassification": "SEQUENCE_CLASSIFICATION",
    "QuestionAnswering": "QUESTION_ANSWERING",
    "MaskedLM": "MASKED_LM",
    "CausalLM": "CAUSAL_LM",
}


def config(name: str) -> Any:
    """The tiny config of an architecture, without dropout."""
    model_type, settings = MODELS[name]
    given = {key: value for key, value in {**SMALL, **settings}.items() if value is not None}
    made = transformers.AutoConfig.for_model(model_type, **given)
    for key, value in vars(made).items():
        if "drop" in key and isinstance(value, float):
            setattr(made, key, 0.0)
    return made


def has_task(name: str, task: str) -> bool:
    """Whether transformers has a head of the task for the architecture; decoders out of encoders are not counted."""
    if task == "CausalLM" and name not in DECODERS:
        return False
    return type(config(name)) in getattr(transformers, f"MODEL_FOR_{TASKS[task]}_MAPPING")


def make(name: str, task: str) -> Any:
    """A random model of an architecture with a task's head, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return getattr(transformers, f"AutoModelFor{task}").from_config(config(name)).eval()
