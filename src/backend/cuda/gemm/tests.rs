//! Random tiles and activations, judged by f64 products over tiles that are decoded here.

use super::*;
use crate::backend::cuda::{
    Buffer, Plain,
    batch::Row,
    rows::padded,
    tiles::{TileFormat, UNIT_BYTES},
};
use half::f16;

const FORMATS: [TileFormat; 3] = [TileFormat::Mxfp4, TileFormat::Q8_0, TileFormat::F16];

/// xorshift64*.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize) % n
    }

    /// About normal.
    pub fn values(&mut self, n: usize, deviation: f32) -> Vec<f32> {
        let mut one = || (0..4).map(|_| self.below(1 << 16)).sum::<usize>() as f32;
        (0..n)
            .map(|_| (one() / 65536.0 - 2.0) * 1.732 * deviation)
            .collect()
    }
}

pub fn upload<T: Plain>(device: &Arc<Device>, data: &[T]) -> Buffer<T> {
    let mut buffer = device.alloc(data.len(), "a test").unwrap();
    buffer.upload(0, data).unwrap();
    buffer
}

pub fn download<T: Plain + Default>(buffer: &Buffer<T>) -> Vec<T> {
    let mut data = vec![T::default(); buffer.len()];
    buffer.download(0, &mut data).unwrap();
    data
}

/// Where input `i` lies in paired order, as gemm.cuh's head says: of each 32, the eight from 8 t on are
/// lane t's, two in each of its four registers.
pub fn paired(i: usize) -> usize {
    let (block, lane, register, odd) = (i / 32, i % 32 / 8, i % 8 / 2, i % 2);
    block * 32 + register * 8 + lane * 2 + odd
}

/// `rows` of `width` values as the kernels take them.
pub fn in_paired_order(values: &[f32], width: usize) -> Vec<f16> {
    let rows = values.chunks_exact(width).flat_map(|row| {
        let mut out = vec![f16::ZERO; padded(width)];
        for (i, &v) in row.iter().enumerate() {
            out[paired(i)] = f16::from_f32(v);
        }
        out
    });
    rows.collect()
}

/// ||got - want|| / ||want||; not a number where any of them isn't.
pub fn error(pairs: impl Iterator<Item = (f64, f64)>) -> f64 {
    let (wrong, all) = pairs.fold((0.0f64, 0.0f64), |(wrong, all), (got, want)| {
        (wrong + (got - want).powi(2), all + want * want)
    });
    (wrong / f64::max(all, 1e-30)).sqrt()
}

/// Matrices of random bytes, on both sides.
struct Weights {
    format: TileFormat,
    inputs: usize,
    bytes: Vec<u8>,
    _buffers: (Buffer<u8>, Buffer<u8>),
    scaled: Scaled,
}

impl Weights {
    fn random(
        products: &Products,
        rng: &mut Random,
        format: TileFormat,
        (tiles, inputs, experts): (usize, usize, usize),
    ) -> Weights {
        let shape = Tiles::shape(format, tiles * 16, inputs);
        let mut bytes = vec![0; shape.stride() * experts];
        for (u, unit) in bytes.chunks_exact_mut(UNIT_BYTES).enumerate() {
            let first = u % shape.units as usize * format.unit_inputs();
            let (values, scales) = unit.split_at_mut(512);
            values.fill_with(|| rng.below(256) as u8);
            let mut halves = |low: f32, high: f32| {
                let sign = [1.0, -1.0][rng.below(2)];
                let v = sign * (low + (high - low) * rng.below(1024) as f32 / 1024.0);
                f16::from_f32(v).to_le_bytes()
            };
            match format {
                TileFormat::Mxfp4 => {
                    scales.fill_with(|| 117 + rng.below(8) as u8);
                    if first + 64 > inputs {
                        values.chunks_exact_mut(16).for_each(|v| v[8..].fill(0));
                        scales.chunks_exact_mut(4).for_each(|s| s[2..].fill(0));
                    }
                }
                TileFormat::Q8_0 => {
                    let scales = scales.chunks_exact_mut(2);
                    scales.for_each(|s| s.copy_from_slice(&halves(1e-4, 2e-3)));
                }
                TileFormat::F16 => {
                    let values = values.chunks_exact_mut(2);
                    values.for_each(|v| v.copy_from_slice(&halves(0.0, 2.0)));
                    for scale in scales.chunks_exact_mut(2) {
                        let power = f16::from_f32(0.5f32.powi(rng.below(5) as i32));
                        scale.copy_from_slice(&power.to_le_bytes());
                    }
                }
            }
        }
        let device = &products.device;
        let data = upload(device, &bytes);
        let exponents = device.alloc(Products::exponent_bytes(&shape, experts), "a test");
        let exponents = exponents.unwrap();
        let tiles = Tiles {
            data: data.ptr(),
            ..shape
        };
        let scaled = products.exponents(tiles, experts, inputs, exponents.ptr());
        Weights {
            format,
            inputs,
            bytes,
            _buffers: (data, exponents),
            scaled: scaled.unwrap(),
        }
    }

    /// Row `row` of a tile of an expert, times `x`.
    fn dot(&self, expert: usize, tile: usize, row: usize, x: &[f32]) -> f64 {
        let tiles = &self.scaled.tiles;
        let bytes = tiles.units as usize * UNIT_BYTES;
        let tile = &self.bytes[expert * tiles.stride() + tile * bytes..][..bytes];
        let x = x.iter().map(|&v| f64::from(f16::from_f32(v)));
        (0..self.inputs)
            .zip(x)
            .map(|(i, x)| self.value(tile, row, i) * x)
            .sum()
    }

    /// Input `i` of row `row`, as common.cuh describes the formats.
    fn value(&self, tile: &[u8], row: usize, i: usize) -> f64 {
        let (g, high, lane, k) = (row % 8, row / 8, row % 8 * 4 + i % 32 / 8, i % 8);
        let half = |b: &[u8]| f64::from(f16::from_le_bytes([b[0], b[1]]));
        let unit = match self.format {
            TileFormat::Mxfp4 => i / 64,
            TileFormat::Q8_0 => i / 32,
            TileFormat::F16 => i / 32 * 2 + k / 4,
        };
        let (values, scales) = tile[unit * UNIT_BYTES..][..UNIT_BYTES].split_at(512);
        let values = &values[lane * 16..][..16];
        match self.format {
            TileFormat::Mxfp4 => {
                let block = i / 32 % 2;
                let word = &values[(2 * block + high) * 4..][..4];
                let word = u32::from_le_bytes(word.try_into().unwrap());
                let (pair, odd) = (k / 2, 16 * (k % 2));
                let code = word >> ([9, 1, 12, 4][pair] + odd) & 7;
                let sign = word >> ([15, 7, 8, 0][pair] + odd) & 1;
                let value = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0][code as usize];
                let exponent = i32::from(scales[g * 4 + 2 * block + high]) - 127;
                (1.0 - 2.0 * f64::from(sign)) * value * 2f64.powi(exponent)
            }
            TileFormat::Q8_0 => {
                (f64::from(values[high * 8 + k]) - 128.0) * half(&scales[g * 4 + high * 2..])
            }
            TileFormat::F16 => {
                half(&values[high * 8 + k % 4 * 2..]) * half(&scales[g * 4 + high * 2..])
            }
        }
    }
}

/// Pairs sorted on the device.
struct Sorted {
    ids: Vec<i32>,
    chosen: Vec<f32>,
    buffers: (Buffer<i32>, Buffer<f32>, [Buffer<i32>; 3]),
    routes: Routes,
}

impl Sorted {
    fn new(
        products: &Products,
        rng: &mut Random,
        shape: Shape,
        experts: usize,
        used: usize,
        ids: Vec<i32>,
    ) -> Sorted {
        let device = &products.device;
        let pairs = ids.len();
        let chosen: Vec<f32> = (0..pairs)
            .map(|_| 0.01 + rng.below(100) as f32 / 100.0)
            .collect();
        let (on_ids, on_chosen) = (upload(device, &ids), upload(device, &chosen));
        let pieces = Products::pieces(pairs, experts);
        let words = [pairs, 4 * pieces, 1].map(|n| upload(device, &vec![-1; n]));
        let routes = Routes {
            ids: on_ids.ptr(),
            chosen: on_chosen.ptr(),
            order: words[0].ptr(),
            work: words[1].ptr(),
            touched: 0,
            count: words[2].ptr(),
            experts,
            used,
            shape,
        };
        products.route(&routes, pairs / used).unwrap();
        Sorted {
            ids,
            chosen,
            buffers: (on_ids, on_chosen, words),
            routes,
        }
    }

    /// Where pairs are after sorting.
    fn order(&self) -> Vec<i32> {
        download(&self.buffers.2[0])
    }
}

/// `used` different experts for each of `rows` rows.
fn choose(rng: &mut Random, rows: usize, experts: usize, used: usize) -> Vec<i32> {
    let row = |_| {
        let mut all: Vec<i32> = (0..experts as i32).collect();
        for i in 0..used {
            let other = i + rng.below(experts - i);
            all.swap(i, other);
        }
        all.truncate(used);
        all
    };
    (0..rows).flat_map(row).collect()
}

/// A few outputs of a few rows: the first and last, and others.
fn samples(rng: &mut Random, rows: usize, outputs: usize, n: usize) -> Vec<(usize, usize)> {
    let corners = [(0, 0), (rows - 1, outputs - 1), (0, outputs - 1)];
    let others = (0..n).map(|_| (rng.below(rows), rng.below(outputs)));
    corners.into_iter().chain(others).collect()
}

#[test]
fn gpu_gemm_dense() {
    let device = Device::open().unwrap();
    let products = Products::new(&device).unwrap();
    let rng = &mut Random(11);
    let small = [1, 9, 17, 40, 64, 65, 129, 300].map(|rows: usize| (rows, 160usize, 184usize));
    for (rows, inputs, width) in
        small
            .into_iter()
            .chain([(33, 96, 1000), (70, 2880, 2880), (16, 4096, 2880)])
    {
        for format in FORMATS {
            let shape = (width.div_ceil(16), inputs, 1);
            let w = Weights::random(&products, rng, format, shape);
            let x = rng.values(rows * inputs, 1.0);
            let h = upload(&device, &in_paired_order(&x, inputs));
            let (before, bias) = (rng.values(rows * width, 1.0), rng.values(width, 1.0));
            let (residual, on_bias) = (upload(&device, &before), upload(&device, &bias));
            let logits = upload(&device, &vec![f32::NAN; rows * width]);
            let input = Input {
                h: h.ptr(),
                rows,
                stride: padded(inputs),
            };
            let out_proj = Output::OutProj {
                out: residual.ptr(),
                width,
                bias: on_bias.ptr(),
            };
            let lm_head = Output::LmHead {
                out: logits.ptr(),
                width,
            };
            products.multiply(&w.scaled, input, out_proj).unwrap();
            products.multiply(&w.scaled, input, lm_head).unwrap();
            let (residual, logits) = (download(&residual), download(&logits));
            assert!(residual.iter().chain(&logits).all(|v| v.is_finite()));
            let want =
                |&(r, o): &(usize, usize)| w.dot(0, o / 16, o % 16, &x[r * inputs..][..inputs]);
            let at = samples(rng, rows, width, 200_000 / inputs);
            let logits = at
                .iter()
                .map(|at| (f64::from(logits[at.0 * width + at.1]), want(at)));
            let logits = error(logits);
            let residual = at.iter().map(|at| {
                let i = at.0 * width + at.1;
                let want = f64::from(before[i]) + want(at) + f64::from(bias[at.1]);
                (f64::from(residual[i]), want)
            });
            let residual = error(residual);
            let what = format!("{format:?}, {rows} rows, {inputs} to {width}");
            assert!(logits <= 5e-4, "{what}: logits off by {logits}");
            assert!(residual <= 5e-4, "{what}: residual off by {residual}");
        }
    }
}

#[test]
fn gpu_gemm_qkv() {
    let device = Device::open().unwrap();
    let products = Products::new(&device).unwrap();
    let rng = &mut Random(12);
    let (heads, kv_heads, inputs) = (4, 2, 160);
    let width = (heads + 2 * kv_heads) * 64;
    for (rows, format) in [9, 40, 129].into_iter().zip(FORMATS) {
        let w = Weights::random(&products, rng, format, (width / 16, inputs, 1));
        let x = rng.values(rows * inputs, 1.0);
        let h = upload(&device, &in_paired_order(&x, inputs));
        let (bias, rope) = (rng.values(width, 1.0), rng.values(100 * 64, 1.0));
        let (on_bias, on_rope) = (upload(&device, &bias), upload(&device, &rope));
        let tokens: Vec<Row> = (0..rows)
            .map(|_| Row {
                token: 0,
                position: rng.below(100) as i32,
                segment: 0,
                append: 1,
            })
            .collect();
        let on_tokens = upload(&device, &tokens);
        let q = upload(&device, &vec![f16::NAN; rows * heads * 64]);
        let fresh = upload(&device, &vec![f16::NAN; rows * kv_heads * 128]);
        let out = QkvOut {
            q: q.ptr(),
            fresh: fresh.ptr(),
            bias: on_bias.ptr(),
            rope: on_rope.ptr(),
            rows: on_tokens.ptr(),
            heads: heads as i32,
            kv_heads: kv_heads as i32,
            ..QkvOut::NONE
        };
        let input = Input {
            h: h.ptr(),
            rows,
            stride: padded(inputs),
        };
        products
            .multiply(&w.scaled, input, Output::Qkv(out))
            .unwrap();
        let (q, fresh) = (download(&q), download(&fresh));
        let mut pairs = Vec::new();
        for r in 0..rows {
            for head in 0..heads + 2 * kv_heads {
                for i in 0..32 {
                    let dot = |half: usize| {
                        let x = &x[r * inputs..][..inputs];
                        let sum = w.dot(0, head * 4 + i / 8, i % 8 + 8 * half, x);
                        sum + f64::from(bias[head * 64 + i + 32 * half])
                    };
                    let (mut a, mut b) = (dot(0), dot(1));
                    let turn = &rope[tokens[r].position as usize * 64..][..64];
                    if head < heads + kv_heads {
                        let (c, s) = (f64::from(turn[i]), f64::from(turn[i + 32]));
                        (a, b) = (a * c - b * s, b * c + a * s);
                    }
                    let (out, at, scale) = if head < heads {
                        (&q, (r * heads + head) * 64, 0.125)
                    } else {
                        let (value, h) = ((head - heads) / kv_heads, (head - heads) % kv_heads);
                        (&fresh, ((r * kv_heads + h) * 2 + value) * 64, 1.0)
                    };
                    pairs.push((f64::from(out[at + i]), a * scale));
                    pairs.push((f64::from(out[at + i + 32]), b * scale));
                }
            }
        }
        let error = error(pairs.into_iter());
        assert!(error <= 6e-4, "{format:?}, {rows} rows: off by {error}");
    }
}

#[test]
fn gpu_gemm_experts() {
    let device = Device::open().unwrap();
    let products = Products::new(&device).unwrap();
    let rng = &mut Random(13);
    let small = [1, 9, 40, 100, 300].map(|rows: usize| (rows, 160usize, 96usize, 5usize, 2usize));
    let release = [(16, 2880, 2880, 4, 2), (200, 2880, 2880, 4, 2)];
    for (i, (rows, hidden, width, experts, used)) in small.into_iter().chain(release).enumerate() {
        for format in FORMATS {
            if hidden == 2880 && format != TileFormat::Mxfp4 {
                continue;
            }
            let gate_up = Weights::random(&products, rng, format, (width / 8, hidden, experts));
            let shape = (hidden.div_ceil(16), width, experts);
            let down = Weights::random(&products, rng, format, shape);
            let mut ids = choose(rng, rows, experts, used);
            if i % 2 == 1 {
                // All on expert 1 first, and one that no one takes.
                ids.chunks_exact_mut(used).for_each(|ids| {
                    ids[0] = 1;
                    ids[1] = 2;
                });
            }
            let formats = [format as i32; 2];
            let stride = padded(hidden.max(width));
            let shape = products.shape(formats, stride, rows, (used, experts));
            let sorted = Sorted::new(&products, rng, shape, experts, used, ids);
            let pairs = rows * used;
            let x = rng.values(rows * hidden, 1.0);
            let h = upload(&device, &in_paired_order(&x, hidden));
            let [gate_bias, up_bias] = [(); 2].map(|()| rng.values(experts * width, 0.5));
            let down_bias = rng.values(experts * hidden, 0.5);
            let biases = [&gate_bias, &up_bias, &down_bias].map(|b| upload(&device, b));
            let s = upload(&device, &vec![f16::ZERO; pairs * padded(width)]);
            let y = upload(&device, &vec![f32::NAN; pairs * hidden]);
            let output = Output::GateUp {
                out: s.ptr(),
                stride: padded(width),
                width,
                bias: biases[0].ptr(),
                up_bias: biases[1].ptr(),
                limit: 7.0,
                routes: sorted.routes,
            };
            let mut input = Input {
                h: h.ptr(),
                rows,
                stride: padded(hidden),
            };
            products.multiply(&gate_up.scaled, input, output).unwrap();
            let output = Output::Down {
                out: y.ptr(),
                width: hidden,
                bias: biases[2].ptr(),
                routes: sorted.routes,
            };
            input.h = s.ptr();
            input.stride = padded(width);
            products.multiply(&down.scaled, input, output).unwrap();
            let (s, y, order) = (download(&s), download(&y), sorted.order());
            assert!(y.iter().all(|v| v.is_finite()));
            let mut place = vec![0; pairs];
            for (at, &pair) in order.iter().enumerate() {
                place[pair as usize] = at;
            }
            let expert = |pair: usize| sorted.ids[pair] as usize;
            let n = 200_000 / hidden;
            let gated = samples(rng, pairs, width, n).into_iter().map(|(pair, o)| {
                let (x, e) = (&x[pair / used * hidden..][..hidden], expert(pair));
                let gate = gate_up.dot(e, o / 8, o % 8, x) + f64::from(gate_bias[e * width + o]);
                let up = gate_up.dot(e, o / 8, o % 8 + 8, x) + f64::from(up_bias[e * width + o]);
                let (gate, up) = (gate.min(7.0), up.clamp(-7.0, 7.0));
                let want = gate / (1.0 + (-1.702 * gate).exp()) * (up + 1.0);
                let got = s[place[pair] * padded(width) + paired(o)];
                (f64::from(got), want * f64::from(sorted.chosen[pair]))
            });
            let gated = error(gated);
            let out = samples(rng, pairs, hidden, n).into_iter().map(|(pair, o)| {
                let e = expert(pair);
                let s = &s[place[pair] * padded(width)..][..padded(width)];
                let s: Vec<f32> = (0..width).map(|i| s[paired(i)].to_f32()).collect();
                let bias = f64::from(down_bias[e * hidden + o] * sorted.chosen[pair]);
                let want = down.dot(e, o / 16, o % 16, &s) + bias;
                (f64::from(y[pair * hidden + o]), want)
            });
            let out = error(out);
            let what = format!("{format:?}, {rows} rows of {hidden}, {width} wide");
            assert!(gated <= 1e-3, "{what}: gate and up off by {gated}");
            assert!(out <= 5e-4, "{what}: down off by {out}");
        }
    }
}

#[test]
fn gpu_gemm_route() {
    let device = Device::open().unwrap();
    let products = Products::new(&device).unwrap();
    let rng = &mut Random(14);
    for (rows, experts, used) in [
        (1, 32, 4),
        (3, 5, 2),
        (40, 128, 8),
        (300, 32, 4),
        (2048, 32, 4),
        (2500, 1, 1),
    ] {
        for (case, shape) in [8, 24, 160].map(Shape::few).into_iter().enumerate() {
            let mut ids = choose(rng, rows, experts, used);
            if case == 1 {
                // Rows that only fill up a graph.
                ids[rows * used / 2..].fill(-1);
            }
            let sorted = Sorted::new(&products, rng, shape, experts, used, ids.clone());
            let mut want: Vec<i32> = (0..ids.len() as i32)
                .filter(|&p| ids[p as usize] >= 0)
                .collect();
            want.sort_by_key(|&p| ids[p as usize]);
            assert_eq!(sorted.order()[..want.len()], want);
            let words = &sorted.buffers.2;
            let (work, count) = (download(&words[1]), download(&words[2])[0] as usize);
            assert!(count <= shape.pieces(&sorted.routes, rows));
            let mut at = 0;
            for piece in work.chunks_exact(4).take(count).filter(|w| w[2] > 0) {
                let (expert, first, len) = (piece[0], piece[1] as usize, piece[2] as usize);
                assert_eq!(first, at);
                assert!(len <= shape.columns);
                at += len;
                let own = &want[first..at];
                assert!(own.iter().all(|&p| ids[p as usize] == expert));
            }
            assert_eq!(at, want.len());
        }
    }
}
