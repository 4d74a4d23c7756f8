//! Attention of a tile of query rows over one step of 32 cached positions, all in f32.
//!
//! A row is one query head of one token. Keys are cached transposed, so that sixteen positions are
//! sixteen lanes and a score is one chain of fma over the head's dimensions; values are cached row
//! by row. Each row keeps a running maximum, which starts at its sink, so the first partition's sum
//! starts at 1 (the sink's own term). Masked positions weigh exactly 0: a row's result depends on
//! its own positions only, whatever rows share the tile.
#![allow(unsafe_code)] // generic over intrinsics
#![allow(clippy::needless_range_loop)] // several arrays are walked together

use super::simd::F32x16;

/// Positions of one step: two blocks of sixteen keys.
pub const STEP: usize = 32;

/// Running softmax state of some query rows that share a KV head.
pub struct Tile {
    /// Width of a head.
    pub head_dim: usize,
    /// Queries `[rows, head_dim]`, rotated and scaled by 1/sqrt(head_dim).
    pub q: Vec<f32>,
    /// Each row's visible positions `start..end`.
    pub visible: Vec<(usize, usize)>,
    /// Running maximum `[rows]`.
    pub max: Vec<f32>,
    /// Running sum of weights, `[rows, 16]` by lane.
    pub sum: Vec<[f32; 16]>,
    /// Weighted values `[rows, head_dim]`.
    pub acc: Vec<f32>,
    /// The step's keys and values widened: `[2, head_dim, 16]` and `[32, head_dim]`.
    keys: Vec<f32>,
    values: Vec<f32>,
    /// Scores, then weights: `[rows, 32]`.
    weights: Vec<[f32; STEP]>,
}

impl Tile {
    /// Room for `rows` query rows.
    pub fn new(rows: usize, head_dim: usize) -> Tile {
        Tile {
            head_dim,
            q: vec![0.0; rows * head_dim],
            visible: vec![(0, 0); rows],
            max: vec![0.0; rows],
            sum: vec![[0.0; 16]; rows],
            acc: vec![0.0; rows * head_dim],
            keys: vec![0.0; STEP * head_dim],
            values: vec![0.0; STEP * head_dim],
            weights: vec![[0.0; STEP]; rows],
        }
    }

    /// Bytes that [`Tile::new`] takes.
    pub fn bytes(rows: usize, head_dim: usize) -> usize {
        let row = 2 * head_dim + 1 + 16 + STEP;
        (rows * row + 2 * STEP * head_dim) * size_of::<f32>() + rows * size_of::<(usize, usize)>()
    }

    /// Bytes that it has taken.
    #[cfg(test)]
    pub fn allocated(&self) -> usize {
        let values = self.q.len() + self.max.len() + self.acc.len();
        let values = values + self.keys.len() + self.values.len();
        let rows = size_of_val(&self.visible[..]) + size_of_val(&self.sum[..]);
        values * size_of::<f32>() + rows + size_of_val(&self.weights[..])
    }
}

/// Adds positions `position..position + 32` to the first `rows` rows of the tile.
///
/// `k` is `[2, head_dim, 16]` and `v` `[32, head_dim]`, f16 bit patterns.
///
/// # Safety
/// Call where `V`'s instruction set is enabled.
#[inline(always)]
pub unsafe fn attend<V: F32x16>(
    tile: &mut Tile,
    rows: usize,
    k: &[u16],
    v: &[u16],
    position: usize,
) {
    let d = tile.head_dim;
    assert!(d.is_multiple_of(16) && k.len() == STEP * d && v.len() == STEP * d);
    assert!(rows <= tile.visible.len());
    // SAFETY: all lengths follow from `head_dim` and `rows`, checked above and in `Tile::new`.
    unsafe {
        for i in (0..STEP * d).step_by(16) {
            V::load_f16(k.as_ptr().add(i)).store(tile.keys.as_mut_ptr().add(i));
            V::load_f16(v.as_ptr().add(i)).store(tile.values.as_mut_ptr().add(i));
        }
        let seen = tile.visible[..rows].iter();
        let (start, end) = seen.fold((usize::MAX, 0), |(s, e), v| (s.min(v.0), e.max(v.1)));
        if start > position || end < position + STEP {
            // What no row sees is another's: a NaN there would outlive its weight of 0.
            for p in (0..STEP).filter(|p| !(start..end).contains(&(position + p))) {
                tile.values[p * d..(p + 1) * d].fill(0.0);
            }
        }
        for first in (0..rows).step_by(4) {
            let n = (rows - first).min(4);
            let visible = &tile.visible[first..first + n];
            if visible
                .iter()
                .all(|&(start, end)| end <= position || start >= position + STEP)
            {
                continue;
            }
            scores::<V>(tile, first, n);
            for r in first..first + n {
                softmax::<V>(tile, r, position);
            }
            for dim in (0..d).step_by(32) {
                if d - dim >= 32 {
                    values::<V, 2>(tile, first, n, dim)
                } else {
                    values::<V, 1>(tile, first, n, dim)
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn scores<V: F32x16>(tile: &mut Tile, first: usize, n: usize) {
    let d = tile.head_dim;
    let q: [*const f32; 4] = std::array::from_fn(|r| tile.q[(first + r.min(n - 1)) * d..].as_ptr());
    // SAFETY: each q row has d values; keys has 2 * d * 16.
    unsafe {
        let mut s = [[V::splat(0.0); 2]; 4];
        for i in 0..d {
            let k0 = V::load(tile.keys.as_ptr().add(i * 16));
            let k1 = V::load(tile.keys.as_ptr().add((d + i) * 16));
            for r in 0..4 {
                let x = V::splat(*q[r].add(i));
                s[r][0] = x.fma(k0, s[r][0]);
                s[r][1] = x.fma(k1, s[r][1]);
            }
        }
        for r in 0..n {
            s[r][0].store(tile.weights[first + r].as_mut_ptr());
            s[r][1].store(tile.weights[first + r].as_mut_ptr().add(16));
        }
    }
}

#[inline(always)]
unsafe fn softmax<V: F32x16>(tile: &mut Tile, r: usize, position: usize) {
    let d = tile.head_dim;
    let (start, end) = tile.visible[r];
    let w = &mut tile.weights[r];
    if start > position || end < position + STEP {
        for (i, w) in w.iter_mut().enumerate() {
            if position + i < start || position + i >= end {
                *w = f32::NEG_INFINITY;
            }
        }
    }
    // SAFETY: w has 32 lanes, sum 16, acc d for this row.
    unsafe {
        let (s0, s1) = (V::load(w.as_ptr()), V::load(w.as_ptr().add(16)));
        let largest = s0.max(s1).largest();
        let mut sum = V::load(tile.sum[r].as_ptr());
        if largest > tile.max[r] {
            let shrink = V::splat(tile.max[r] - largest).exp();
            tile.max[r] = largest;
            sum = sum.mul(shrink);
            for i in (0..d).step_by(16) {
                let at = tile.acc.as_mut_ptr().add(r * d + i);
                V::load(at).mul(shrink).store(at);
            }
        }
        let max = V::splat(tile.max[r]);
        let (p0, p1) = (s0.sub(max).exp(), s1.sub(max).exp());
        sum.add(p0).add(p1).store(tile.sum[r].as_mut_ptr());
        p0.store(w.as_mut_ptr());
        p1.store(w.as_mut_ptr().add(16));
    }
}

/// `acc[r][dim..dim + 16 N] += sum over the step of weight * value`, positions in order.
#[inline(always)]
unsafe fn values<V: F32x16, const N: usize>(tile: &mut Tile, first: usize, n: usize, dim: usize) {
    let d = tile.head_dim;
    let row = |r: usize| first + r.min(n - 1);
    // SAFETY: dim + 16 N <= d; rows as in `attend`.
    unsafe {
        let mut acc = [[V::splat(0.0); N]; 4];
        for r in 0..4 {
            for j in 0..N {
                acc[r][j] = V::load(tile.acc.as_ptr().add(row(r) * d + dim + j * 16));
            }
        }
        let w: [*const f32; 4] = std::array::from_fn(|r| tile.weights[row(r)].as_ptr());
        for p in 0..STEP {
            let at = tile.values.as_ptr().add(p * d + dim);
            let mut v = [V::splat(0.0); N];
            for (j, v) in v.iter_mut().enumerate() {
                *v = V::load(at.add(j * 16));
            }
            for r in 0..4 {
                let x = V::splat(*w[r].add(p));
                for j in 0..N {
                    acc[r][j] = x.fma(v[j], acc[r][j]);
                }
            }
        }
        for r in 0..n {
            for j in 0..N {
                acc[r][j].store(tile.acc.as_mut_ptr().add(row(r) * d + dim + j * 16));
            }
        }
    }
}

/// Softmax state of one row over one partition of its positions, or over several merged in order.
pub struct Partial<'a> {
    /// Largest score, or the sink.
    pub max: f32,
    /// Sum of weights relative to `max`.
    pub sum: f32,
    /// Weighted values `[head_dim]`.
    pub acc: &'a mut [f32],
}

/// Merges `part`, the next partition, into `into`.
///
/// # Safety
/// Call where `V`'s instruction set is enabled.
#[inline(always)]
pub unsafe fn merge<V: F32x16>(into: &mut Partial, part: &Partial) {
    let n = into.acc.len();
    assert!(n.is_multiple_of(16) && part.acc.len() == n);
    let max = if part.max > into.max {
        part.max
    } else {
        into.max
    };
    // SAFETY: indices stay below n.
    unsafe {
        let (a, b) = (
            V::splat(into.max - max).exp(),
            V::splat(part.max - max).exp(),
        );
        let mut s = [0f32; 16];
        V::splat(part.sum)
            .fma(b, V::splat(into.sum).mul(a))
            .store(s.as_mut_ptr());
        into.sum = s[0];
        into.max = max;
        for i in (0..n).step_by(16) {
            let at = into.acc.as_mut_ptr().add(i);
            V::load(part.acc.as_ptr().add(i))
                .fma(b, V::load(at).mul(a))
                .store(at);
        }
    }
}
