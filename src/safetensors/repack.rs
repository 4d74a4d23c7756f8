//! A folder's tensors as GGUF blocks: whole, for loading, or piece by piece, for `gossamer convert`.

use super::{
    Folder, parallel,
    source::{Affine, AffineView, Source, float_at, mxfp4_row},
};
use crate::{
    gguf::{Bytes, FileError, TensorInfo, let_go},
    quant::GgmlType,
    weights::{Format, Matrix, Offsets},
};
use half::f16;
use memmap2::MmapMut;
use std::{
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

/// Bytes of output that a thread takes at a time.
const CHUNK: usize = 1 << 18;

/// What a tensor becomes in a GGUF file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Encoding {
    /// Its type there.
    pub kind: GgmlType,
    /// Most that a value differs from the folder's, and the greatest value.
    pub rounding: Option<(f32, f32)>,
}

impl Folder {
    /// See [`Tensors::repacked`](crate::weights::Tensors::repacked). The folder's own pages are not held beside what
    /// becomes of them: a model would need its memory twice.
    pub(super) fn repack(
        &self,
        tensor: &TensorInfo,
        dry: bool,
    ) -> Result<Option<Matrix>, FileError> {
        let matrix = self.repack_held(tensor, dry)?;
        if let (Some(_), false, Some(tensor)) = (&matrix, dry, self.source(tensor)) {
            for part in tensor.source.parts() {
                let_go(&self.files[part.file].1, &part.range);
            }
        }
        Ok(matrix)
    }

    fn repack_held(&self, tensor: &TensorInfo, dry: bool) -> Result<Option<Matrix>, FileError> {
        let (rows, cols) = shape(tensor);
        let Some(source) = self.source(tensor).map(|t| &t.source) else {
            return Ok(None);
        };
        let (format, group) = match source {
            Source::Float { .. } => return Ok(None),
            Source::Mxfp4 { .. } => (Format::MXFP4, None),
            Source::Affine(_) if tensor.kind == GgmlType::F32 => (Format::F32, None),
            Source::Affine(affine) => (Format::Q8_0, Some(affine.group)),
        };
        let empty = || Bytes::Owned(Arc::new([]));
        let matrix = |format, data, offsets| Matrix {
            format,
            rows,
            cols,
            data,
            offsets,
        };
        let fail = |what: String| self.wrong(tensor, &what);
        if dry {
            // A few rows tell, for a forecast.
            let offsets = match (source, group) {
                (Source::Affine(affine), Some(group))
                    if !self.is_q8_0(affine, rows.min(8), cols).map_err(fail)? =>
                {
                    Some(Offsets {
                        group,
                        data: empty(),
                    })
                }
                _ => None,
            };
            return Ok(Some(matrix(format, empty(), offsets)));
        }
        if let (Source::Affine(affine), Some(_)) = (source, group)
            && let Some((data, offsets)) = self.q8_0(affine, rows, cols).map_err(fail)?
        {
            return Ok(Some(matrix(Format::Q8_0, data, offsets)));
        }
        let kind = if group.is_some() {
            GgmlType::F32
        } else {
            format.kind()
        };
        let format = if group.is_some() { Format::F32 } else { format };
        let data = fill(rows, format.row_bytes(cols), |rows, out| {
            self.encode_rows(source, kind, cols, rows, out)
        });
        Ok(Some(matrix(format, data.map_err(fail)?, None)))
    }

    /// An affine matrix as Q8_0 and offsets (none where all are zero), or `None` where that isn't exact.
    fn q8_0(
        &self,
        affine: &Affine,
        rows: usize,
        cols: usize,
    ) -> Result<Option<(Bytes, Option<Offsets>)>, String> {
        let view = self.affine(affine, cols);
        let row_bytes = Format::Q8_0.row_bytes(cols);
        let mut offsets = Offsets {
            group: affine.group,
            data: Bytes::Owned(Arc::new([])),
        };
        let stride = offsets.stride(cols) * size_of::<f32>();
        let mut data = anonymous(rows * row_bytes)?;
        let mut rest = anonymous(rows * stride)?;
        let (exact, plain) = (AtomicBool::new(true), AtomicBool::new(true));
        let at_once = (CHUNK / row_bytes).max(1);
        let chunks = data
            .chunks_mut(at_once * row_bytes)
            .zip(rest.chunks_mut(at_once * stride))
            .enumerate();
        parallel::each(chunks, |(i, (data, rest))| {
            let mut found = vec![0.0; view.groups()];
            let rows = data
                .chunks_exact_mut(row_bytes)
                .zip(rest.chunks_exact_mut(stride))
                .enumerate();
            for (r, (out, rest)) in rows {
                if !exact.load(Ordering::Relaxed) {
                    return Ok(());
                }
                if !view.q8_0_row(i * at_once + r, out, &mut found)? {
                    exact.store(false, Ordering::Relaxed);
                    return Ok(());
                }
                if found.iter().any(|&offset| offset != 0.0) {
                    plain.store(false, Ordering::Relaxed);
                }
                for (rest, offset) in rest.chunks_exact_mut(4).zip(&found) {
                    rest.copy_from_slice(&offset.to_le_bytes());
                }
            }
            Ok(())
        })?;
        if !exact.into_inner() {
            return Ok(None);
        }
        offsets.data = frozen(rest)?;
        Ok(Some((
            frozen(data)?,
            (!plain.into_inner()).then_some(offsets),
        )))
    }

    /// What `tensor` becomes in a GGUF file: the smallest type that holds its values, or, with `round`, F16 in
    /// place of F32. Small tensors and the router become F32, as every program expects. Reads an affine
    /// matrix's scales.
    ///
    /// # Errors
    /// Where a value is not finite.
    pub fn encoding(&self, tensor: &TensorInfo, round: bool) -> Result<Encoding, FileError> {
        let exact = |kind| {
            Ok(Encoding {
                kind,
                rounding: None,
            })
        };
        let is_small = tensor.dims.len() == 1 || tensor.name.ends_with(".bias");
        let (rows, cols) = shape(tensor);
        match self.source(tensor).map(|t| &t.source) {
            Some(Source::Affine(affine)) if tensor.kind == GgmlType::Q8_0 => {
                let fail = |what: String| self.wrong(tensor, &what);
                if self.is_q8_0(affine, rows, cols).map_err(fail)? {
                    return exact(GgmlType::Q8_0);
                }
                let rounding = self.rounding(affine, rows, cols).map_err(fail)?;
                match rounding {
                    (0.0, _) => exact(GgmlType::F16),
                    (error, _) if round && error.is_finite() => {
                        let kind = GgmlType::F16;
                        Ok(Encoding {
                            kind,
                            rounding: Some(rounding),
                        })
                    }
                    _ => exact(GgmlType::F32),
                }
            }
            Some(Source::Float { .. })
                if is_small || tensor.name.ends_with("ffn_gate_inp.weight") =>
            {
                exact(GgmlType::F32)
            }
            _ => exact(tensor.kind),
        }
    }

    /// Writes rows `rows` of `tensor` to `out`, as the type that [`Folder::encoding`] chose. A vector is one
    /// row.
    ///
    /// # Errors
    /// Where a value is not finite.
    pub fn encode(
        &self,
        tensor: &TensorInfo,
        kind: GgmlType,
        rows: Range<usize>,
        out: &mut [u8],
    ) -> Result<(), FileError> {
        let Some(source) = self.source(tensor).map(|t| &t.source) else {
            return Err(self.wrong(tensor, "expected one of this folder's tensors"));
        };
        let (_, cols) = shape(tensor);
        let row_bytes = cols / kind.block_values() * kind.block_bytes();
        let at_once = (CHUNK / row_bytes.max(1)).max(1);
        let chunks = out.chunks_mut(at_once * row_bytes).enumerate();
        let done = parallel::each(chunks, |(i, out)| {
            let first = rows.start + i * at_once;
            self.encode_rows(
                source,
                kind,
                cols,
                first..first + out.len() / row_bytes,
                out,
            )
        });
        done.map_err(|what| self.wrong(tensor, &what))
    }

    fn encode_rows(
        &self,
        source: &Source,
        kind: GgmlType,
        cols: usize,
        rows: Range<usize>,
        out: &mut [u8],
    ) -> Result<(), String> {
        let row_bytes = cols / kind.block_values() * kind.block_bytes();
        let mut values = vec![0.0; cols];
        let mut offsets = vec![0.0; cols / 32];
        for (row, out) in rows.zip(out.chunks_exact_mut(row_bytes)) {
            match source {
                Source::Mxfp4 {
                    codes,
                    scales,
                    rows,
                } => {
                    mxfp4_row(
                        self.bytes(codes),
                        self.bytes(scales),
                        cols,
                        rows.row(row),
                        out,
                    )?;
                }
                Source::Affine(affine) if kind == GgmlType::Q8_0 => {
                    self.affine(affine, cols).q8_0_row(row, out, &mut offsets)?;
                }
                Source::Affine(affine) => {
                    self.affine(affine, cols).f32_row(row, &mut values)?;
                    store(&values, kind, out);
                }
                Source::Float { values: part, rows } => {
                    let from = (self.bytes(part), part.dtype);
                    for (i, value) in values.iter_mut().enumerate() {
                        *value = float_at(from, rows.row(row * cols + i));
                    }
                    if let Some(value) = values.iter().find(|value| !value.is_finite()) {
                        return Err(format!(
                            "expected finite values, found {value} in row {row}"
                        ));
                    }
                    store(&values, kind, out);
                }
            }
        }
        Ok(())
    }

    /// Whether every group is Q8_0's special case.
    fn is_q8_0(&self, affine: &Affine, rows: usize, cols: usize) -> Result<bool, String> {
        let view = self.affine(affine, cols);
        let all = AtomicBool::new(true);
        parallel::each(pieces(rows), |rows| {
            for row in rows {
                if !all.load(Ordering::Relaxed) {
                    break;
                }
                if !view.is_q8_0(row)? {
                    all.store(false, Ordering::Relaxed);
                }
            }
            Ok(())
        })?;
        Ok(all.into_inner())
    }

    /// Most that F16 would change a value, and the greatest value.
    fn rounding(&self, affine: &Affine, rows: usize, cols: usize) -> Result<(f32, f32), String> {
        let view = self.affine(affine, cols);
        let most = Mutex::new((0f32, 0f32));
        parallel::each(pieces(rows), |rows| {
            let (mut values, mut found) = (vec![0.0; cols], (0f32, 0f32));
            for row in rows {
                view.f32_row(row, &mut values)?;
                for &value in &values {
                    let error = (f16::from_f32(value).to_f32() - value).abs();
                    found = (found.0.max(error), found.1.max(value.abs()));
                }
            }
            if let Ok(mut most) = most.lock() {
                *most = (most.0.max(found.0), most.1.max(found.1));
            }
            Ok(())
        })?;
        Ok(most.into_inner().unwrap_or((f32::INFINITY, f32::INFINITY)))
    }

    fn affine(&self, affine: &Affine, cols: usize) -> AffineView<'_> {
        AffineView {
            codes: self.bytes(&affine.codes),
            scales: (self.bytes(&affine.scales), affine.scales.dtype),
            biases: (self.bytes(&affine.biases), affine.biases.dtype),
            bits: affine.bits,
            group: affine.group,
            cols,
        }
    }

    fn wrong(&self, tensor: &TensorInfo, what: &str) -> FileError {
        crate::weights::Tensors::tensor_error(self, tensor, what)
    }
}

/// Rows and columns of a tensor; a vector is one row.
pub(super) fn shape(tensor: &TensorInfo) -> (usize, usize) {
    let dims: Vec<usize> = tensor.dims.iter().map(|&d| d as usize).collect();
    match dims.split_first() {
        Some((&cols, outer)) => (outer.iter().product(), cols),
        None => (0, 0),
    }
}

/// Values as floats of type `kind`.
fn store(values: &[f32], kind: GgmlType, out: &mut [u8]) {
    match kind {
        GgmlType::F32 => {
            let out = out.chunks_exact_mut(4).zip(values);
            out.for_each(|(out, value)| out.copy_from_slice(&value.to_le_bytes()));
        }
        GgmlType::F16 => {
            let out = out.chunks_exact_mut(2).zip(values);
            out.for_each(|(out, value)| out.copy_from_slice(&f16::from_f32(*value).to_le_bytes()));
        }
        _ => {
            let out = out.chunks_exact_mut(2).zip(values);
            out.for_each(|(out, value)| {
                out.copy_from_slice(&half::bf16::from_f32(*value).to_le_bytes());
            });
        }
    }
}

/// Ranges of rows for threads to take.
fn pieces(rows: usize) -> impl Iterator<Item = Range<usize>> {
    (0..rows)
        .step_by(64)
        .map(move |first| first..(first + 64).min(rows))
}

/// Fresh memory of `rows` rows, each range of them written by `write`, on all cores.
fn fill(
    rows: usize,
    row_bytes: usize,
    write: impl Fn(Range<usize>, &mut [u8]) -> Result<(), String> + Sync,
) -> Result<Bytes, String> {
    let mut map = anonymous(rows * row_bytes)?;
    let at_once = (CHUNK / row_bytes).max(1);
    parallel::each(
        map.chunks_mut(at_once * row_bytes).enumerate(),
        |(i, out)| {
            let first = i * at_once;
            write(first..first + out.len() / row_bytes, out)
        },
    )?;
    frozen(map)
}

fn anonymous(bytes: usize) -> Result<MmapMut, String> {
    MmapMut::map_anon(bytes).map_err(|e| format!("memory for its {bytes} bytes: {e}"))
}

fn frozen(map: MmapMut) -> Result<Bytes, String> {
    let len = map.len();
    let map = map.make_read_only().map_err(|e| format!("memory: {e}"))?;
    Ok(Bytes::Mapped(Arc::new(map), 0..len))
}
