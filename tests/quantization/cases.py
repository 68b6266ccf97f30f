"""The checkpoints that the tests load: every format, with what varies in it."""

from typing import Any

from tests.quantization.writers import Case, Writer, awq, float8, four_bits, gptq, integers, packed


def gptq_config(bits: int, group_size: int, **more: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": bits, "group_size": group_size, "desc_act": False, "sym": True, **more}


def awq_config(group_size: int, **more: Any) -> dict[str, Any]:
    return {"quant_method": "awq", "bits": 4, "group_size": group_size, "zero_point": True, "version": "gemm", **more}


def compressed_group(bits: int, **more: Any) -> dict[str, Any]:
    """One of the `config_groups`; what llm-compressor writes beside that changes nothing."""
    inputs = more.pop("input_activations", None)
    targets = more.pop("targets", ["Linear"])
    weights = {"num_bits": bits, "type": "int", "symmetric": True, "dynamic": False, "observer": "minmax", **more}
    return {"targets": targets, "weights": weights, "input_activations": inputs, "output_activations": None}


def compressed_config(format: str, *groups: dict[str, Any], **more: Any) -> dict[str, Any]:
    named = {f"group_{i}": group for i, group in enumerate(groups)}
    config = {"quant_method": "compressed-tensors", "format": format, "config_groups": named, "ignore": ["lm_head"]}
    return {**config, "kv_cache_scheme": None, "quantization_status": "compressed", **more}


def bitsandbytes_config(kind: str, **more: Any) -> dict[str, Any]:
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": kind}
    return {**config, "bnb_4bit_quant_storage": "uint8", "bnb_4bit_use_double_quant": False, **more}


def group(size: int) -> dict[str, Any]:
    return {"strategy": "group", "group_size": size}


INT8_INPUTS = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": True, "strategy": "token"}
FP8_INPUTS = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": True, "strategy": "token"}
CHANNEL, TENSOR, ASYMMETRIC = {"strategy": "channel"}, {"strategy": "tensor"}, {"symmetric": False}
EVERY_LAYER: dict[str, Writer | None] = {}
TIED = {"tie_word_embeddings": True}
PACK, INT = "pack-quantized", "int-quantized"

GPTQ_CASES = {
    "gptq-4-32": Case(gptq_config(4, 32), gptq(4, 32)),
    "gptq-4-64": Case(gptq_config(4, 64), gptq(4, 64)),
    "gptq-4-128": Case(gptq_config(4, 128), gptq(4, 128)),
    "gptq-4-all": Case(gptq_config(4, -1), gptq(4, -1)),
    "gptq-8-32": Case(gptq_config(8, 32), gptq(8, 32)),
    "gptq-8-all": Case(gptq_config(8, -1), gptq(8, -1)),
    "gptq-asymmetric": Case(gptq_config(4, 64, sym=False), gptq(4, 64, sym=False)),
    "gptq-asymmetric-8": Case(gptq_config(8, 128, sym=False), gptq(8, 128, sym=False)),
    "gptq-v2": Case(gptq_config(4, 64, sym=False, checkpoint_format="gptq_v2"), gptq(4, 64, sym=False, version=2)),
    "gptq-v2-8": Case(gptq_config(8, 64, sym=False, checkpoint_format="gptq_v2"), gptq(8, 64, sym=False, version=2)),
    "gptq-order": Case(gptq_config(4, 32, desc_act=True), gptq(4, 32, order=True)),
    "gptq-order-8": Case(gptq_config(8, 64, desc_act=True, sym=False), gptq(8, 64, order=True, sym=False)),
    "gptq-order-all": Case(gptq_config(4, -1, desc_act=True), gptq(4, -1, order=True)),
    # Queries, keys and values, gates and ups each lie in one weight here.
    "gptq-orders-differ": Case(
        gptq_config(4, 32, desc_act=True),
        gptq(4, 32, order=True),
        {"lm_head": None, "k_proj": gptq(4, 32, order=True, seed=1), "gate_proj": gptq(4, 32, order=True, seed=2)},
    ),
    "gptq-a-plain-part": Case(
        gptq_config(4, 32, dynamic={"-:.*k_proj": {}}), gptq(4, 32), {"lm_head": None, "k_proj": None, "down": None}
    ),
    "gptq-bits-differ": Case(
        gptq_config(4, 32, dynamic={r".*\.up_proj": {"bits": 8, "group_size": 64}, "+:.*q_proj": {"group_size": 64}}),
        gptq(4, 32),
        {"lm_head": None, "up_proj": gptq(8, 64), "q_proj": gptq(4, 64)},
    ),
    "gptq-head": Case(gptq_config(4, 32, lm_head=True), gptq(4, 32), EVERY_LAYER),
    "gptq-tied": Case(gptq_config(4, 32), gptq(4, 32), {"lm_head": None}, TIED),
}
AWQ_CASES = {
    "awq-128": Case(awq_config(128), awq(128)),
    "awq-32": Case(awq_config(32, version="GEMM"), awq(32)),
    "awq-all": Case(awq_config(-1), awq(-1)),
    "awq-a-plain-part": Case(
        awq_config(64, modules_to_not_convert=["v_proj"]), awq(64), {"lm_head": None, "v_proj": None}
    ),
}
COMPRESSED_CASES = {
    "packed-4-128": Case(compressed_config(PACK, compressed_group(4, **group(128))), packed(4, 128)),
    "packed-4-all": Case(compressed_config(PACK, compressed_group(4, **CHANNEL)), packed(4, -1)),
    "packed-asymmetric": Case(
        compressed_config(PACK, compressed_group(4, **group(32), **ASYMMETRIC)), packed(4, 32, sym=False)
    ),
    "packed-asymmetric-all": Case(
        compressed_config(PACK, compressed_group(4, **CHANNEL, **ASYMMETRIC)), packed(4, -1, sym=False)
    ),
    "packed-old-zeros": Case(
        compressed_config(PACK, compressed_group(4, **group(32), **ASYMMETRIC)),
        packed(4, 32, sym=False, old_zeros=True),
    ),
    "packed-8": Case(compressed_config(PACK, compressed_group(8, **CHANNEL)), packed(8, -1)),
    "packed-8-asymmetric": Case(
        compressed_config(PACK, compressed_group(8, **group(64), **ASYMMETRIC)), packed(8, 64, sym=False)
    ),
    "packed-order": Case(
        compressed_config(PACK, compressed_group(4, **group(32), actorder="group")), packed(4, 32, order=True)
    ),
    "packed-static-order": Case(
        compressed_config(PACK, compressed_group(4, **group(32), actorder="weight")), packed(4, 32)
    ),
    "packed-head": Case(
        compressed_config(PACK, compressed_group(4, **group(32)), ignore=[]), packed(4, 32), EVERY_LAYER
    ),
    "packed-tied": Case(
        compressed_config(PACK, compressed_group(4, **group(32))), packed(4, 32), {"lm_head": None}, TIED
    ),
    "packed-ignored": Case(
        compressed_config(PACK, compressed_group(4, **group(32)), ignore=["lm_head", r"re:.*\.k_proj$"]),
        packed(4, 32),
        {"lm_head": None, "k_proj": None},
    ),
    "packed-targets": Case(
        compressed_config(
            PACK,
            compressed_group(4, **group(32), targets=["Linear"]),
            compressed_group(8, **CHANNEL, targets=[r"re:.*v_proj"]),
            compressed_group(4, **group(64), targets=["model.layers.1.self_attn.v_proj"]),
        ),
        packed(4, 32),
        {"lm_head": None, "layers.1.self_attn.v_proj": packed(4, 64), "v_proj": packed(8, -1)},
    ),
    "w8a8": Case(
        compressed_config(INT, compressed_group(8, **CHANNEL, input_activations=INT8_INPUTS)), integers("channel")
    ),
    "w8a8-static": Case(
        compressed_config(
            INT,
            compressed_group(
                8, **TENSOR, input_activations={**INT8_INPUTS, "dynamic": False, "strategy": "tensor", **ASYMMETRIC}
            ),
        ),
        integers("tensor", is_static=True),
    ),
    "w8a8-asymmetric": Case(
        compressed_config(INT, compressed_group(8, **CHANNEL, **ASYMMETRIC, input_activations=INT8_INPUTS)),
        integers("channel", sym=False),
    ),
    "w8a16": Case(compressed_config(INT, compressed_group(8, **group(32))), integers("group", group_size=32)),
    "w4-in-bytes": Case(
        compressed_config("naive-quantized", compressed_group(4, **group(32))), integers("group", bits=4, group_size=32)
    ),
    "formats-differ": Case(
        compressed_config(
            "mixed-precision",
            compressed_group(4, **group(32)) | {"format": PACK},
            compressed_group(8, **CHANNEL, targets=["re:.*(gate|up)_proj"]) | {"format": INT},
        ),
        packed(4, 32),
        {"lm_head": None, "gate": integers("channel"), "up": integers("channel")},
    ),
    "fp8-tensor": Case(
        compressed_config("float-quantized", compressed_group(8, type="float", **TENSOR, input_activations=FP8_INPUTS)),
        float8("tensor"),
    ),
    "fp8-scalar": Case(
        compressed_config("float-quantized", compressed_group(8, type="float", **TENSOR)),
        float8("tensor", scale_shape=()),
    ),
    "fp8-channel": Case(
        compressed_config("naive-quantized", compressed_group(8, type="float", **CHANNEL)), float8("channel")
    ),
    "fp8-block": Case(
        compressed_config(
            "float-quantized", compressed_group(8, type="float", strategy="block", block_structure=[48, 80])
        ),
        float8("block", (48, 80)),
    ),
}
BITSANDBYTES_CASES = {
    "nf4": Case(bitsandbytes_config("nf4"), four_bits("nf4")),
    "nf4-nested": Case(bitsandbytes_config("nf4", bnb_4bit_use_double_quant=True), four_bits("nf4", is_nested=True)),
    "nf4-a-plain-part": Case(
        bitsandbytes_config("nf4", llm_int8_skip_modules=["v_proj"]),
        four_bits("nf4"),
        {"lm_head": None, "v_proj": None},
    ),
    "fp4": Case(bitsandbytes_config("fp4"), four_bits("fp4", 128)),
}
CASES = GPTQ_CASES | AWQ_CASES | COMPRESSED_CASES | BITSANDBYTES_CASES
