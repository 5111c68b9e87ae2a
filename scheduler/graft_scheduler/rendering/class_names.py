"""Which class the hosts' library opens a folder's tokenizer as. A test compares these tables with its own."""

from __future__ import annotations

from graft_scheduler.rendering.folders import TokenizerFolder

PLAIN = "TokenizersBackend"
"""What `tokenizer.json` says and nothing else."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_OF_CLASS = {
    "CohereTokenizer": _words("cohere cohere2"),
    "GPT2Tokenizer": _words("dbrx gpt2 gptj phi starcoder2"),
    "GPTNeoXTokenizer": _words("falcon_mamba gpt_neox mamba mamba2 olmo olmoe"),
    "GemmaTokenizer": _words("gemma gemma2 gemma3 gemma3_text gemma3n recurrent_gemma"),
    "Qwen2Tokenizer": _words(
        "qwen2 qwen2_5_vl qwen2_moe qwen2_vl qwen3 qwen3_moe qwen3_next qwen3_vl qwen3_vl_moe"
    ),
    "Qwen3_5Tokenizer": _words("qwen3_5 qwen3_5_moe"),
    PLAIN: _words(
        "ernie4_5 ernie4_5_moe glm glm4 glm4_moe glm4_moe_lite gpt_bigcode granite granitemoe "
        "granitemoehybrid internlm2 internlm3 iquestcoder jamba kimi_k25 kimi_linear llava mimo_v2_flash "
        "minicpm3 minimax_m2 ministral3 mistral mistral3 mixtral nemotron olmo2 olmo3 olmo_hybrid phi3 "
        "phimoe pixtral stablelm"
    ),
}
BY_MODEL_TYPE = {one: name for name, model_types in _OF_CLASS.items() for one in model_types}
"""The class of a model type, of those that mlx-lm can train; the others have none of their own."""

OVERRULED = _words(
    "ernie4_5 ernie4_5_moe internlm2 internlm3 iquestcoder jamba llava minicpm3 minimax_m2 nemotron phi3 "
    "phimoe qwen2 qwen3_5 qwen3_5_moe"
)
"""Model types whose folders often name a wrong class: that of the type is taken instead."""

NOT_HERE = _words("""
    AlbertTokenizer BarthezTokenizer BertTokenizer BigBirdTokenizer BlenderbotTokenizer CLIPTokenizer
    CamembertTokenizer CodeGenTokenizer CodeLlamaTokenizer DebertaTokenizer DebertaV2Tokenizer
    DistilBertTokenizer FunnelTokenizer HerbertTokenizer MBart50Tokenizer MBartTokenizer MPNetTokenizer
    NllbTokenizer NougatTokenizer OpenAIGPTTokenizer PegasusTokenizer ReformerTokenizer RemBertTokenizer
    RoFormerTokenizer RobertaTokenizer SeamlessM4TTokenizer Siglip2Tokenizer SplinterTokenizer T5Tokenizer
    WhisperTokenizer XGLMTokenizer XLMRobertaTokenizer XLNetTokenizer
""")
"""Classes that split by rules of their own, and are not repeated here."""


def class_name(folder: TokenizerFolder) -> str:
    """The name of the class, as the library chooses it."""
    declared, model_type = folder.declared_class, str(folder.model.get("model_type"))
    own = BY_MODEL_TYPE.get(model_type)
    if declared is None:
        return own or PLAIN
    if declared == "LlamaTokenizer" and model_type not in OVERRULED and _is_byte_level(folder):
        return PLAIN
    if own is None or own == declared:
        return declared
    if own == PLAIN:
        return PLAIN
    return own if model_type in OVERRULED else declared


def _is_byte_level(folder: TokenizerFolder) -> bool:
    return b'"ByteLevel"' in folder.path.read_bytes()
