//! From a folder's bytes to the blocks that back ends compute with: MXFP4 is reordered bit by bit, affine
//! integers become Q8_0 where that loses nothing. No value is rounded but where a caller asks for F16.
//!
//! One block of 32 MXFP4 codes: the folders' byte j holds elements 2j and 2j+1, GGUF's j and j+16.
//! An affine value is `scale * q + bias`, a scale and a bias a group; Q8_0 has no bias, so the remainder
//! `bias + middle * scale` becomes the group's offset ([`Offsets`](crate::weights::Offsets)), zero where a Q8_0
//! file was the origin.

use super::header::Raw;
use half::{bf16, f16};
use safetensors::Dtype;
use std::ops::Range;

/// Values of a GGUF block.
const BLOCK: usize = 32;

/// A tensor's bytes in one of the folder's files.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub dtype: Dtype,
    pub file: usize,
    pub range: Range<usize>,
}

impl Part {
    pub fn of(raw: &Raw) -> Part {
        Part {
            dtype: raw.dtype,
            file: raw.file,
            range: raw.range.clone(),
        }
    }
}

/// Which rows of a tensor (which values of a vector) are meant: all, or every second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stride {
    pub first: usize,
    pub step: usize,
}

impl Stride {
    pub const ALL: Stride = Stride { first: 0, step: 1 };
    pub const EVEN: Stride = Stride { first: 0, step: 2 };
    pub const ODD: Stride = Stride { first: 1, step: 2 };

    /// Where row `row` of those meant lies.
    pub fn row(self, row: usize) -> usize {
        row * self.step + self.first
    }
}

/// Where a tensor's values come from.
#[derive(Debug)]
pub(super) enum Source {
    /// BF16, F16 or F32 as they are.
    Float { values: Part, rows: Stride },
    /// MXFP4 codes and their E8M0 scales.
    Mxfp4 {
        codes: Part,
        scales: Part,
        rows: Stride,
    },
    /// MLX's affine integers.
    Affine(Affine),
}

/// An affine matrix.
#[derive(Debug)]
pub(super) struct Affine {
    pub codes: Part,
    pub scales: Part,
    pub biases: Part,
    /// 4 or 8.
    pub bits: usize,
    /// Values that share a scale: 32, 64 or 128.
    pub group: usize,
}

impl Source {
    /// Where its bytes lie.
    pub fn parts(&self) -> Vec<&Part> {
        match self {
            Source::Float { values, .. } => vec![values],
            Source::Mxfp4 { codes, scales, .. } => vec![codes, scales],
            Source::Affine(affine) => vec![&affine.codes, &affine.scales, &affine.biases],
        }
    }

    /// What people call this form.
    pub fn label(&self) -> String {
        match self {
            Source::Float { values, .. } => format!("{:?}", values.dtype),
            Source::Mxfp4 { .. } => "MXFP4".to_owned(),
            Source::Affine(a) => format!("affine{}/{}", a.bits, a.group),
        }
    }
}

/// Writes MXFP4 row `row`, of `cols` values, as GGUF blocks.
pub(super) fn mxfp4_row(
    codes: &[u8],
    scales: &[u8],
    cols: usize,
    row: usize,
    out: &mut [u8],
) -> Result<(), String> {
    let blocks = cols / BLOCK;
    let codes = &codes[row * cols / 2..][..cols / 2];
    let scales = &scales[row * blocks..][..blocks];
    for ((codes, &scale), out) in codes
        .chunks_exact(16)
        .zip(scales)
        .zip(out.chunks_exact_mut(17))
    {
        if scale == 255 {
            return Err(format!(
                "expected finite scales, found 255 (NaN) in row {row}"
            ));
        }
        out[0] = scale;
        // Elements 2i and 2i+1 are byte i's nibbles; their partners, 16 further on, byte i+8's.
        let (low, high) = codes.split_at(8);
        for ((pair, &low), &high) in out[1..].chunks_exact_mut(2).zip(low).zip(high) {
            pair[0] = low & 15 | high << 4;
            pair[1] = low >> 4 | high & 0xf0;
        }
    }
    Ok(())
}

/// An affine matrix's bytes.
#[derive(Clone, Copy)]
pub(super) struct AffineView<'a> {
    pub codes: &'a [u8],
    pub scales: (&'a [u8], Dtype),
    pub biases: (&'a [u8], Dtype),
    pub bits: usize,
    pub group: usize,
    pub cols: usize,
}

impl AffineView<'_> {
    /// Groups of a row.
    pub fn groups(&self) -> usize {
        self.cols / self.group
    }

    /// Group `g` of all rows: scale and bias.
    fn scale(&self, g: usize) -> Result<(f32, f32), String> {
        let (scale, bias) = (float_at(self.scales, g), float_at(self.biases, g));
        if scale.is_finite() && bias.is_finite() {
            return Ok((scale, bias));
        }
        let row = g / self.groups();
        Err(format!(
            "expected finite scales and biases, found {scale} and {bias} in row {row}"
        ))
    }

    /// Calls `each` with the codes of group `g` of all rows, in order.
    fn codes(&self, g: usize, mut each: impl FnMut(usize, u8)) {
        let bytes = self.group * self.bits / 8;
        let codes = &self.codes[g * bytes..][..bytes];
        if self.bits == 8 {
            codes
                .iter()
                .enumerate()
                .for_each(|(i, &code)| each(i, code));
        } else {
            for (i, &pair) in codes.iter().enumerate() {
                each(2 * i, pair & 15);
                each(2 * i + 1, pair >> 4);
            }
        }
    }

    /// Group `g` as integers around zero times an f16 scale, plus an offset: `None` where that would not be
    /// the very same values.
    fn centred(&self, g: usize) -> Result<Option<(f16, f32)>, String> {
        let (scale, bias) = self.scale(g)?;
        let d = f16::from_f32(scale);
        let exact = f64::from(bias) + f64::from(self.middle()) * f64::from(scale);
        let offset = exact as f32;
        if d.to_f32() == scale && f64::from(offset) == exact {
            return Ok(Some((d, offset)));
        }
        // A group of equal values (a row that training never touched) needs no scale.
        let (mut low, mut high) = (u8::MAX, 0);
        self.codes(g, |_, code| (low, high) = (low.min(code), high.max(code)));
        Ok((low == high).then(|| (f16::ZERO, scale * f32::from(low) + bias)))
    }

    /// The code that stands for zero once centred.
    fn middle(&self) -> u8 {
        1 << (self.bits - 1)
    }

    /// Writes row `row` as Q8_0 blocks and its groups' offsets; false where that can't be done exactly.
    pub fn q8_0_row(
        &self,
        row: usize,
        out: &mut [u8],
        offsets: &mut [f32],
    ) -> Result<bool, String> {
        let groups = self.groups();
        let bytes = self.group / BLOCK * 34;
        for (i, (out, offset)) in out.chunks_exact_mut(bytes).zip(offsets).enumerate() {
            let g = row * groups + i;
            let Some((d, rest)) = self.centred(g)? else {
                return Ok(false);
            };
            *offset = rest;
            for block in out.chunks_exact_mut(34) {
                block[..2].copy_from_slice(&d.to_le_bytes());
            }
            let middle = self.middle();
            self.codes(g, |k, code| {
                out[k / BLOCK * 34 + 2 + k % BLOCK] = code.wrapping_sub(middle);
            });
        }
        Ok(true)
    }

    /// Whether row `row` is Q8_0 without any offset.
    pub fn is_q8_0(&self, row: usize) -> Result<bool, String> {
        for g in row * self.groups()..(row + 1) * self.groups() {
            if !matches!(self.centred(g)?, Some((_, 0.0))) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Decodes row `row`.
    pub fn f32_row(&self, row: usize, out: &mut [f32]) -> Result<(), String> {
        for (i, out) in out.chunks_exact_mut(self.group).enumerate() {
            let g = row * self.groups() + i;
            let (scale, bias) = self.scale(g)?;
            self.codes(g, |k, code| out[k] = scale * f32::from(code) + bias);
        }
        Ok(())
    }
}

/// Value `i` of floats.
pub(super) fn float_at((bytes, dtype): (&[u8], Dtype), i: usize) -> f32 {
    match dtype {
        Dtype::F32 => {
            let b = &bytes[4 * i..4 * i + 4];
            f32::from_le_bytes([b[0], b[1], b[2], b[3]])
        }
        Dtype::F16 => f16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32(),
        _ => bf16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32(),
    }
}
