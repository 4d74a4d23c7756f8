"""Judges GGUF reading by the PyPI package `gguf`, as a writer and as a reader with its dequantizer.

  judge_gguf.py write SEED DIR   writes files for us to read: DIR/{plain,aligned,big-endian}.gguf,
                                 DIR/split-0000?-of-00003.gguf, and DIR/metadata.json: what is in them
  judge_gguf.py read FILE DIR    dequantizes every tensor of FILE to DIR/NAME.f32 (little-endian f32)
"""

import json
import sys
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFEndian, GGUFReader, GGUFWriter, quants

# Types that the package can quantize to; for the others `read` is given random blocks.
QUANTIZABLE = [Type.Q8_0, Type.MXFP4, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.BF16]


def read(path, out):
    for tensor in GGUFReader(path).tensors:
        with np.errstate(all="ignore"):
            values = quants.dequantize(tensor.data, tensor.tensor_type)
        assert values.dtype == np.float32, tensor.name
        values.astype("<f4").tofile(out / f"{tensor.name}.f32")


def exact(value):
    """Floats as text: not every JSON reader keeps their last bit."""
    if isinstance(value, list):
        return [exact(v) for v in value]
    return repr(value) if isinstance(value, float) else value


def fill(writer, rng, values):
    """One metadata entry of every type, and a tensor of every type the package can make."""
    entries = [
        ("uint8", int(rng.integers(0, 2**8))),
        ("int8", int(rng.integers(-(2**7), 2**7))),
        ("uint16", int(rng.integers(0, 2**16))),
        ("int16", int(rng.integers(-(2**15), 2**15))),
        ("uint32", int(rng.integers(0, 2**32))),
        ("int32", int(rng.integers(-(2**31), 2**31))),
        ("uint64", int(rng.integers(0, 2**64, dtype=np.uint64))),
        ("int64", int(rng.integers(-(2**63), 2**63))),
        ("float32", float(rng.standard_normal(dtype=np.float32))),
        ("float64", float(rng.standard_normal())),
        ("bool", bool(rng.integers(0, 2))),
        ("string", "größer 東京 " + str(rng.integers(0, 1000))),
        ("array", [int(v) for v in rng.integers(-1000, 1000, size=50)]),
        ("array", [str(v) * int(v % 5) for v in rng.integers(0, 1000, size=50)]),
        ("array", [float(v) for v in rng.standard_normal(7, dtype=np.float32)]),
        ("array", [True, False, True]),
    ]
    for i, (kind, value) in enumerate(entries):
        key = f"judge.{kind}.{i}"
        getattr(writer, f"add_{kind}")(key, value)
        values[key] = exact(value)
    shape = (3, 2, 64)
    writer.add_tensor("f32", rng.standard_normal(shape, dtype=np.float32))
    writer.add_tensor("f16", rng.standard_normal(shape).astype(np.float16))
    for kind in QUANTIZABLE:
        scale = np.exp(rng.normal(0, 3, size=(3, 2, 1)))
        data = (rng.standard_normal(shape) * scale).astype(np.float32)
        writer.add_tensor(kind.name.lower(), quants.quantize(data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write(seed, out):
    values = {}
    fill(GGUFWriter(out / "plain.gguf", "test"), np.random.default_rng(seed), values)
    aligned = GGUFWriter(out / "aligned.gguf", "test")
    aligned.add_custom_alignment(128)
    fill(aligned, np.random.default_rng(seed), {})
    big = GGUFWriter(out / "big-endian.gguf", "test", endianess=GGUFEndian.BIG)
    fill(big, np.random.default_rng(seed), {})
    split = GGUFWriter(out / "split.gguf", "test", split_max_tensors=3)
    fill(split, np.random.default_rng(seed), {})
    (out / "metadata.json").write_text(json.dumps(values))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["write", seed, out]:
            write(int(seed), Path(out))
        case ["read", path, out]:
            read(path, Path(out))
        case _:
            sys.exit(__doc__)
