"""Q8_0 whose scales bf16 holds, so that MLX's affine matrices (bf16 scales and biases) hold the same values.

    python3 requantize.py IN.gguf OUT.gguf

writes the file again with every Q8_0 block quantized anew from its own values; `export.py` makes blocks the same way.
Needs numpy and gguf.
"""

import sys

import gguf
import numpy as np

Q8_0 = gguf.GGMLQuantizationType.Q8_0


def q8_0(w):
    """Blocks of 32: the largest magnitude / 127, rounded up to the 8 bits of a bf16, is the scale; values to the nearest."""
    b = np.ascontiguousarray(w, np.float32).reshape(-1, 32)
    amax = np.abs(b).max(-1, keepdims=True)
    mantissa, exponent = np.frexp(amax / np.float32(127))
    d = np.ldexp(np.ceil(mantissa * 256), exponent - 8).astype(np.float32)
    q = np.rint(np.divide(b, d, where=d > 0, out=np.zeros_like(b)))
    assert np.abs(q).max() <= 127 and not (d.view(np.uint32) & 0xffff).any()
    blocks = np.concatenate([d.astype("<f2").view(np.uint8), q.astype(np.int8).view(np.uint8)], -1)
    data = blocks.reshape(*w.shape[:-1], -1)
    # Scales are exact in f16 too.
    assert np.array_equal(gguf.quants.dequantize(data, Q8_0), (d * q).reshape(w.shape))
    return data


def main():
    source, target = sys.argv[1:]
    with open(source, "rb") as file:
        whole = bytearray(file.read())
    for tensor in gguf.GGUFReader(source).tensors:
        if tensor.tensor_type == Q8_0:
            values = gguf.quants.dequantize(tensor.data, Q8_0)
            data = q8_0(values).tobytes()
            assert len(data) == tensor.n_bytes
            start = int(tensor.data_offset)
            whole[start : start + len(data)] = data
            error = np.abs(gguf.quants.dequantize(q8_0(values), Q8_0) - values).max()
            print(f"{tensor.name}: largest change {error:.1e} of {np.abs(values).max():.1e}")
    with open(target, "wb") as file:
        file.write(whole)


if __name__ == "__main__":
    main()
