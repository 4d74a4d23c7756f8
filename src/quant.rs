//! Block formats of GGUF tensors and their scalar decoders, as ggml defines them.
//!
//! [`dequantize`] is the definition every kernel is judged by: it gives the very f32 values of
//! ggml's own decoders, bit for bit. All numbers are little endian.

use half::{bf16, f16};

/// Declares the tensor types with their ids in the file, values a block and bytes a block.
macro_rules! ggml_types {
    ($($(#[$doc:meta])* $name:ident = $id:literal, $values:literal, $bytes:literal;)*) => {
        /// A ggml tensor type. Those that [`is_readable`](GgmlType::is_readable) denies are known by
        /// name and size only, so that `inspect` can show them and errors can name them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[allow(missing_docs, non_camel_case_types)]
        pub enum GgmlType { $($(#[$doc])* $name = $id,)* }

        impl GgmlType {
            /// Every type, in the order of their ids.
            pub const ALL: &[GgmlType] = &[$(GgmlType::$name,)*];

            /// The type with this id in a file.
            pub fn from_id(id: u32) -> Option<GgmlType> {
                match id { $($id => Some(GgmlType::$name),)* _ => None }
            }

            /// Values in a block.
            pub fn block_values(self) -> usize {
                match self { $(GgmlType::$name => $values,)* }
            }

            /// Bytes of a block.
            pub fn block_bytes(self) -> usize {
                match self { $(GgmlType::$name => $bytes,)* }
            }

            /// Its name, as ggml spells it.
            pub fn name(self) -> &'static str {
                match self { $(GgmlType::$name => stringify!($name),)* }
            }
        }
    };
}

ggml_types! {
    F32 = 0, 1, 4;
    F16 = 1, 1, 2;
    Q4_0 = 2, 32, 18;
    Q4_1 = 3, 32, 20;
    /// Ollama's first MXFP4: id 4, nibbles in Hugging Face's order. ggml never used the id.
    OLLAMA_MXFP4 = 4, 32, 17;
    Q5_0 = 6, 32, 22;
    Q5_1 = 7, 32, 24;
    Q8_0 = 8, 32, 34;
    Q8_1 = 9, 32, 40;
    Q2_K = 10, 256, 84;
    Q3_K = 11, 256, 110;
    Q4_K = 12, 256, 144;
    Q5_K = 13, 256, 176;
    Q6_K = 14, 256, 210;
    Q8_K = 15, 256, 292;
    IQ2_XXS = 16, 256, 66;
    IQ2_XS = 17, 256, 74;
    IQ3_XXS = 18, 256, 98;
    IQ1_S = 19, 256, 50;
    IQ4_NL = 20, 32, 18;
    IQ3_S = 21, 256, 110;
    IQ2_S = 22, 256, 82;
    IQ4_XS = 23, 256, 136;
    I8 = 24, 1, 1;
    I16 = 25, 1, 2;
    I32 = 26, 1, 4;
    I64 = 27, 1, 8;
    F64 = 28, 1, 8;
    IQ1_M = 29, 256, 56;
    BF16 = 30, 1, 2;
    TQ1_0 = 34, 256, 54;
    TQ2_0 = 35, 256, 66;
    MXFP4 = 39, 32, 17;
    NVFP4 = 40, 64, 36;
    Q1_0 = 41, 128, 18;
}

impl std::fmt::Display for GgmlType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            GgmlType::OLLAMA_MXFP4 => "MXFP4 (Ollama)",
            known => known.name(),
        })
    }
}

impl GgmlType {
    /// Whether [`dequantize`] reads it.
    pub fn is_readable(self) -> bool {
        use GgmlType::*;
        matches!(
            self,
            F32 | F16
                | BF16
                | Q8_0
                | MXFP4
                | Q4_0
                | Q4_1
                | Q5_0
                | Q5_1
                | Q4_K
                | Q5_K
                | Q6_K
                | IQ4_NL
        )
    }

    /// Bytes of `values` values, or `None` when they are no whole number of blocks or overflow.
    pub fn bytes_for(self, values: usize) -> Option<usize> {
        if values.is_multiple_of(self.block_values()) {
            (values / self.block_values()).checked_mul(self.block_bytes())
        } else {
            None
        }
    }
}

/// MXFP4's sixteen values, doubled: code 8 is +0, as in ggml.
pub const MXFP4_VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// IQ4_NL's sixteen levels.
const IQ4_NL_VALUES: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

/// Half of an E8M0 scale, `2^(e - 128)`: what [`MXFP4_VALUES`] are multiplied by. For e = 0 and 1
/// the result is subnormal; e = 255 gives `2^127`, as ggml has it, not NaN.
pub fn e8m0_half(e: u8) -> f32 {
    f32::from_bits(match e {
        0 | 1 => 0x0020_0000 << e,
        _ => (u32::from(e) - 1) << 23,
    })
}

/// Decodes whole blocks of `kind` to f32.
///
/// # Panics
/// When `kind` isn't readable or `bytes` isn't exactly `out.len()` values: callers have checked both.
pub fn dequantize(kind: GgmlType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(
        kind.bytes_for(out.len()),
        Some(bytes.len()),
        "{kind}: bytes of {} values",
        out.len()
    );
    let block = match kind {
        GgmlType::F32 => {
            |b: &[u8], o: &mut [f32]| o[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]])
        }
        GgmlType::F16 => |b: &[u8], o: &mut [f32]| o[0] = half_at(b, 0),
        GgmlType::BF16 => {
            |b: &[u8], o: &mut [f32]| o[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32()
        }
        GgmlType::Q8_0 => q8_0,
        GgmlType::MXFP4 => mxfp4,
        GgmlType::Q4_0 => q4_0,
        GgmlType::Q4_1 => q4_1,
        GgmlType::Q5_0 => q5_0,
        GgmlType::Q5_1 => q5_1,
        GgmlType::Q4_K => q4_k,
        GgmlType::Q5_K => q5_k,
        GgmlType::Q6_K => q6_k,
        GgmlType::IQ4_NL => iq4_nl,
        _ => panic!("{kind} has no decoder"),
    };
    for (b, o) in bytes
        .chunks_exact(kind.block_bytes())
        .zip(out.chunks_exact_mut(kind.block_values()))
    {
        block(b, o);
    }
}

/// The f16 at `at`, widened.
fn half_at(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

/// Calls `f(j, low nibble of qs[j])` and `f(j + qs.len(), high nibble of qs[j])`.
fn nibbles(qs: &[u8], mut f: impl FnMut(usize, u8)) {
    for (j, q) in qs.iter().enumerate() {
        f(j, q & 15);
        f(j + qs.len(), q >> 4);
    }
}

fn q8_0(b: &[u8], o: &mut [f32]) {
    let d = half_at(b, 0);
    for (o, q) in o.iter_mut().zip(&b[2..34]) {
        *o = f32::from(*q as i8) * d;
    }
}

fn mxfp4(b: &[u8], o: &mut [f32]) {
    let d = e8m0_half(b[0]);
    nibbles(&b[1..17], |j, q| {
        o[j] = d * f32::from(MXFP4_VALUES[usize::from(q)])
    });
}

fn q4_0(b: &[u8], o: &mut [f32]) {
    let d = half_at(b, 0);
    nibbles(&b[2..18], |j, q| o[j] = d * (f32::from(q) - 8.0));
}

fn q4_1(b: &[u8], o: &mut [f32]) {
    let (d, m) = (half_at(b, 0), half_at(b, 2));
    nibbles(&b[4..20], |j, q| o[j] = d * f32::from(q) + m);
}

/// Adds bit `j` of the 32-bit mask at `high` as the fifth bit of `q`.
fn fifth_bit(high: &[u8], j: usize, q: u8) -> f32 {
    f32::from(q | ((high[j / 8] >> (j % 8)) & 1) << 4)
}

fn q5_0(b: &[u8], o: &mut [f32]) {
    let d = half_at(b, 0);
    nibbles(&b[6..22], |j, q| {
        o[j] = d * (fifth_bit(&b[2..6], j, q) - 16.0)
    });
}

fn q5_1(b: &[u8], o: &mut [f32]) {
    let (d, m) = (half_at(b, 0), half_at(b, 2));
    nibbles(&b[8..24], |j, q| o[j] = d * fifth_bit(&b[4..8], j, q) + m);
}

fn iq4_nl(b: &[u8], o: &mut [f32]) {
    let d = half_at(b, 0);
    nibbles(&b[2..18], |j, q| {
        o[j] = d * f32::from(IQ4_NL_VALUES[usize::from(q)])
    });
}

/// Scale and minimum (6 bits each) of sub-block `i` of eight, packed in twelve bytes: the first
/// four of each in the low six bits of bytes 0..4 and 4..8; of the last four the low nibbles in
/// bytes 8..12 and the high two bits on top of the first four.
fn k_scale_min(scales: &[u8], i: usize) -> (f32, f32) {
    let (scale, min) = if i < 4 {
        (scales[i] & 63, scales[i + 4] & 63)
    } else {
        let low = scales[i + 4];
        (
            low & 15 | scales[i - 4] >> 6 << 4,
            low >> 4 | scales[i] >> 6 << 4,
        )
    };
    (f32::from(scale), f32::from(min))
}

fn q4_k(b: &[u8], o: &mut [f32]) {
    let (d, dmin) = (half_at(b, 0), half_at(b, 2));
    for (i, o) in o.chunks_exact_mut(32).enumerate() {
        let (scale, min) = k_scale_min(&b[4..16], i);
        let (d, m) = (d * scale, dmin * min);
        for (o, q) in o.iter_mut().zip(&b[16 + i / 2 * 32..]) {
            *o = d * f32::from(q >> (i % 2 * 4) & 15) - m;
        }
    }
}

fn q5_k(b: &[u8], o: &mut [f32]) {
    let (d, dmin) = (half_at(b, 0), half_at(b, 2));
    for (i, o) in o.chunks_exact_mut(32).enumerate() {
        let (scale, min) = k_scale_min(&b[4..16], i);
        let (d, m) = (d * scale, dmin * min);
        let low = &b[48 + i / 2 * 32..];
        for ((o, q), h) in o.iter_mut().zip(low).zip(&b[16..48]) {
            *o = d * f32::from(q >> (i % 2 * 4) & 15 | (h >> i & 1) << 4) - m;
        }
    }
}

fn q6_k(b: &[u8], o: &mut [f32]) {
    let d = half_at(b, 208);
    for (j, o) in o.iter_mut().enumerate() {
        // Two halves of 128 values; in each, four groups of 32 share 64 low and 32 high bytes.
        let (half, group, k) = (j / 128, j % 128 / 32, j % 32);
        let low = b[half * 64 + group % 2 * 32 + k] >> (group / 2 * 4) & 15;
        let high = b[128 + half * 32 + k] >> (group * 2) & 3;
        let scale = d * f32::from(b[192 + j / 16] as i8);
        *o = scale * (f32::from(low | high << 4) - 32.0);
    }
}
