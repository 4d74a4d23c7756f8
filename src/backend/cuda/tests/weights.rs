//! Weights on the device, decoded here from what common.cuh says of tiles, are the file's values.

use super::models::{Random, hollow, odd_shape};
use crate::{
    backend::cuda::{
        Device,
        tiles::{Order, TILE, TileFormat, Tiles, UNIT_BYTES},
        weights::{DeviceWeights, check_shape, device_bytes},
    },
    config::Config,
    gguf::{Bytes, Gguf},
    synth::{Preset, Synth},
    tokenizer::Vocabulary,
    weights::{Format, Matrix, Model},
};
use half::f16;
use indicatif::ProgressBar;
use std::{ops::Range, time::Instant};

const ALL: [Format; 5] = [
    Format::MXFP4,
    Format::Q8_0,
    Format::F16,
    Format::BF16,
    Format::F32,
];

/// Value of row `r` of tile `tile`, input `i`.
fn value(bytes: &[u8], tiles: &Tiles, tile: usize, r: usize, i: usize) -> f32 {
    let unit = |u: usize| &bytes[(tile * tiles.units as usize + u) * UNIT_BYTES..][..UNIT_BYTES];
    let (g, second) = (r % 8, r / 8);
    // Of the lane that holds inputs 8t to 8t + 7 of a block of 32.
    let (t, k) = (i % 32 / 8, i % 8);
    let lane = 4 * g + t;
    let half_at = |b: &[u8], at: usize| f16::from_le_bytes([b[at], b[at + 1]]);
    if tiles.format == TileFormat::Mxfp4 as i32 {
        let (b, word) = (unit(i / 64), second + i / 32 % 2 * 2);
        let w = u32::from_le_bytes(
            b[lane * 16 + word * 4..][..4]
                .try_into()
                .expect("four bytes"),
        );
        // Where pair k / 2 has its sign and its other three bits, the odd input 16 bits further.
        let (sign, rest) = [(15, 9), (7, 1), (8, 12), (0, 4)][k / 2];
        let w = w >> (k % 2 * 16);
        // An f16 of those, which is the value by 2^-14.
        let bits = ((w >> sign & 1) << 15 | (w >> rest & 7) << 9) as u16;
        let exponent = i32::from(b[512 + g * 4 + word]);
        // In f64, where no exponent overflows.
        return (f64::from(f16::from_bits(bits)) * 2f64.powi(14 + exponent - 127)) as f32;
    }
    if tiles.format == TileFormat::Q8_0 as i32 {
        let b = unit(i / 32);
        let q = f32::from(b[lane * 16 + second * 8 + k]) - 128.0;
        return q * half_at(b, 512 + g * 4 + second * 2).to_f32();
    }
    let b = unit(i / 32 * 2 + k / 4);
    let h = half_at(b, lane * 16 + second * 8 + k % 4 * 2);
    h.to_f32() * half_at(b, 512 + g * 4 + second * 2).to_f32()
}

/// (part, row) of a fused matrix that row `r` of tile `tile` is, by the definition of its order.
fn origin(order: Order, heads: [usize; 3], tile: usize, r: usize) -> (usize, usize) {
    match order {
        Order::Natural => (0, tile * TILE + r),
        Order::Pairs => (r / 8, tile * 8 + r % 8),
        Order::Heads => {
            let (head, row) = (tile / 4, tile % 4 * 8 + r % 8 + r / 8 * 32);
            let firsts = [0, heads[0], heads[0] + heads[1]];
            let part = (0..3).rev().find(|&p| head >= firsts[p]).expect("a part");
            (part, (head - firsts[part]) * 64 + row)
        }
    }
}

/// Compares `count` matrices in tiles with the parts that they were made of.
fn compare(bytes: &[u8], tiles: &Tiles, count: usize, order: Order, parts: &[&Matrix], name: &str) {
    let cols = parts[0].cols;
    let decoded: Vec<Vec<f32>> = parts
        .iter()
        .map(|m| {
            let mut all = vec![0.0; m.rows * cols];
            all.chunks_mut(cols)
                .enumerate()
                .for_each(|(row, out)| m.row_to_f32(row, out));
            all
        })
        .collect();
    let heads = [0, 1, 2].map(|p| parts.get(p).map_or(0, |m| m.rows / 64));
    assert_eq!(bytes.len(), count * tiles.stride());
    let width = tiles.units as usize * inputs_of(tiles);
    assert!((cols..cols + 64).contains(&width));
    for tile in 0..count * tiles.tiles as usize {
        for r in 0..TILE {
            let (part, row) = origin(order, heads, tile, r);
            for i in 0..width {
                let found = value(bytes, tiles, tile, r, i);
                let inside = row < parts[part].rows && i < cols;
                let expected = if inside {
                    decoded[part][row * cols + i]
                } else {
                    0.0
                };
                // F32 keeps 11 bits; all else is exact.
                let most = match parts[part].format {
                    Format::F32 => expected.abs() * 2f32.powi(-11),
                    _ => 0.0,
                };
                assert!(
                    (found - expected).abs() <= most,
                    "{name}, tile {tile}, row {r}, input {i}: {found}, expected {expected}"
                );
            }
        }
    }
}

fn inputs_of(tiles: &Tiles) -> usize {
    let formats = [TileFormat::Mxfp4, TileFormat::Q8_0, TileFormat::F16];
    formats[tiles.format as usize].unit_inputs()
}

/// Uploads a model of these formats and compares everything.
fn check(
    config: Config,
    layers: &[[&[Format]; 2]],
    tables: Format,
    seed: u64,
    exponents: Range<u64>,
) {
    let device = Device::open().expect("a GPU");
    let model = Random::new(seed, exponents).model(config, layers, tables);
    let c = &model.config;
    let there =
        DeviceWeights::upload(&device, &model, &ProgressBar::hidden()).expect("weights on the GPU");
    assert_eq!(there.bytes, device_bytes(&model));
    let floats = |at: u64, expected: &[f32]| {
        let bytes = there.read(at, expected.len() * 4).expect("on the GPU");
        let found: Vec<f32> = bytes
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().expect("four bytes")))
            .collect();
        assert!(found == expected, "a vector differs");
    };
    let tiled = |tiles: &Tiles, count, order, parts: &[&Matrix], name: &str| {
        let bytes = there.read(tiles.data, count * tiles.stride());
        compare(
            &bytes.expect("on the GPU"),
            tiles,
            count,
            order,
            parts,
            name,
        );
    };
    for (layer, at) in model.weights.layers.iter().zip(&there.layers) {
        let (q, k, v, o) = (&layer.q, &layer.k, &layer.v, &layer.o);
        let qkv = [&q.weight, &k.weight, &v.weight];
        tiled(&at.qkv, 1, Order::Heads, &qkv, "q, k, v");
        tiled(&at.out, 1, Order::Natural, &[&o.weight], "out");
        let pair = [&layer.gate.weight, &layer.up.weight];
        tiled(&at.gate_up, c.experts, Order::Pairs, &pair, "gate and up");
        let down = [&layer.down.weight];
        tiled(&at.down, c.experts, Order::Natural, &down, "down");
        floats(at.qkv_bias, &[&q.bias[..], &k.bias, &v.bias].concat());
        floats(at.out_bias, &o.bias);
        floats(at.attn_norm, &layer.attn_norm);
        floats(at.sinks, &layer.sinks);
        floats(at.post_norm, &layer.post_attention_norm);
        floats(at.router_bias, &layer.router.bias);
        floats(at.gate_bias, &layer.gate.bias);
        floats(at.up_bias, &layer.up.bias);
        floats(at.down_bias, &layer.down.bias);
        let mut router = vec![0.0; c.experts * c.hidden];
        for (row, out) in router.chunks_mut(c.hidden).enumerate() {
            layer.router.weight.row_to_f32(row, out);
        }
        floats(at.router, &router);
    }
    floats(there.output_norm, &model.weights.output_norm);
    let output = &model.weights.output;
    tiled(&there.output, 1, Order::Natural, &[output], "LM head");
    let embd = &model.weights.token_embd;
    let found = there.read(there.token_embd, embd.data.len());
    assert!(found.expect("on the GPU")[..] == embd.data[..]);
    assert_eq!(there.embd_format, embd.format.kind() as i32);
    let (freq, scale) = (c.rope.inv_freq(64), c.rope.concentration());
    let table = there.read(there.rope, c.context * 256).expect("on the GPU");
    for (p, row) in table.chunks_exact(256).enumerate() {
        for (i, f) in freq.iter().enumerate() {
            let angle = p as f64 * f64::from(*f);
            for (part, expected) in [(0, angle.cos()), (128, angle.sin())] {
                let at = part + i * 4;
                let found = f32::from_le_bytes(row[at..at + 4].try_into().expect("four bytes"));
                assert!(
                    (found - expected as f32 * scale).abs() < 2e-7,
                    "{p}, {i}: {found}"
                );
            }
        }
    }
}

#[test]
fn gpu_weights_of_every_format_keep_their_values() {
    let uniform: Vec<[&[Format]; 2]> = ALL
        .iter()
        .map(|f| [std::slice::from_ref(f), std::slice::from_ref(f)])
        .collect();
    for (seed, tables) in ALL.into_iter().enumerate() {
        check(odd_shape(), &uniform, tables, seed as u64, 0..241);
    }
}

/// Parts of one matrix that differ in format become F16. Exponents of MXFP4 as in the first test would be
/// beyond its scales, so these are of a trained model's size.
#[test]
fn gpu_weights_of_mixed_formats_keep_their_values() {
    for seed in 10..16 {
        let layer: [&[Format]; 2] = [&ALL, &ALL];
        check(odd_shape(), &[layer, layer], Format::BF16, seed, 100..140);
    }
}

/// Matrices that are carried over in several pieces.
#[test]
fn gpu_weights_of_large_matrices_keep_their_values() {
    let config = Config {
        hidden: 2880,
        expert_width: 2880,
        experts: 3,
        vocab: 4099,
        ..odd_shape()
    };
    check(
        config.clone(),
        &[[&[Format::Q8_0], &[Format::MXFP4]]],
        Format::Q8_0,
        20,
        0..241,
    );
    check(
        config,
        &[[&[Format::F32], &[Format::F16]]],
        Format::F32,
        21,
        0..241,
    );
}

#[test]
fn gpu_weights_that_tiles_cannot_hold_are_refused_by_name() {
    let device = Device::open().expect("a GPU");
    let spoil = |format, block: &[u8]| {
        let formats: &[Format] = &[format];
        let mut model =
            Random::new(30, 0..241).model(odd_shape(), &[[formats, formats]], Format::Q8_0);
        let up = &mut model.weights.layers[0].up.weight;
        let (mut data, at) = (up.data.to_vec(), up.format.row_bytes(up.cols) * 77);
        data[at..at + block.len()].copy_from_slice(block);
        up.data = Bytes::Owned(data.into());
        let result = DeviceWeights::upload(&device, &model, &ProgressBar::hidden());
        result.err().expect("an error").to_string()
    };
    for (format, block) in [
        (Format::MXFP4, &[241u8][..]),
        (Format::F32, &f32::INFINITY.to_le_bytes()),
        (Format::F32, &1e38f32.to_le_bytes()),
        (Format::BF16, &[0xc0, 0x7f]),
    ] {
        let error = spoil(format, block);
        assert!(error.contains("`blk.0.ffn_up_exps.weight`"), "{error}");
    }
}

#[test]
fn shapes_without_kernels_are_refused() {
    let model = Random::new(1, 0..241).model(odd_shape(), &[], Format::F16);
    let known = model.config;
    assert!(check_shape(&known).is_ok());
    let refused = |config: &Config, found: &str| {
        let error = check_shape(config).expect_err(found).to_string();
        assert!(error.contains(found), "{error}");
    };
    let mut config = known.clone();
    config.head_dim = 128;
    refused(&config, "heads of 64 dimensions, found 128");
    let mut config = known.clone();
    (config.heads, config.kv_heads) = (258, 2);
    refused(&config, "found 129");
    let mut config = known.clone();
    config.experts = 129;
    refused(&config, "experts, found 129");
    let mut config = known;
    config.experts_used = 9;
    refused(&config, "for a token, found 9");
}

/// The released shape takes on the device what its matrices take in the file, but for vectors (37 MB) and
/// the RoPE table (34 MB): 2880 needs no padding to 64 inputs.
#[test]
fn the_released_model_takes_its_files_size() {
    let config = Preset::B20.config(201_088);
    let model = hollow(config, Format::Q8_0, Format::MXFP4);
    let weights = &model.weights;
    let bytes = |m: &Matrix| (m.rows * m.format.row_bytes(m.cols)) as u64;
    let mut file = bytes(&weights.token_embd) + bytes(&weights.output);
    for l in &weights.layers {
        let matrices = [&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down];
        file += matrices.iter().map(|l| bytes(&l.weight)).sum::<u64>();
    }
    assert_eq!(file / 1_000_000, 12_059);
    let more = device_bytes(&model) - file;
    assert!((70_000_000..72_000_000).contains(&more), "{more}");
}

/// The released size, out of the page cache. Writes 12.1 GB into the folder for temporary files, which should
/// be in memory.
#[test]
#[ignore = "writes 12.1 GB, and needs a GPU with as much memory"]
fn gpu_weights_of_full_size_are_there_in_five_seconds() {
    let vocabulary = Vocabulary::o200k_harmony().expect("o200k");
    let synth = Synth::new(&Preset::B20.config(201_088), &vocabulary, 1).expect("a layout");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("20b.gguf");
    synth.write(&path, false, |_| {}).expect("room for 12.1 GB");
    let started = Instant::now();
    let gguf = Gguf::open(&path).expect("a file");
    let model = Model::load(&gguf).expect("a model");
    let loaded = started.elapsed();
    let device = Device::open().expect("a GPU");
    let opened = started.elapsed();
    let before = device.memory().expect("memory").0;
    let there = DeviceWeights::upload(&device, &model, &ProgressBar::hidden()).expect("weights");
    let all = started.elapsed();
    let taken = before - device.memory().expect("memory").0;
    println!(
        "file {:.3} s, GPU {:.3} s, weights {:.3} s; {taken} bytes taken, {} planned",
        loaded.as_secs_f64(),
        (opened - loaded).as_secs_f64(),
        (all - opened).as_secs_f64(),
        there.bytes
    );
    assert!(all.as_secs_f64() < 5.0, "{all:?}");
    let off = taken.abs_diff(there.bytes) as f64 / there.bytes as f64;
    assert!(off < 0.03, "{taken} bytes taken, {} planned", there.bytes);
    // One row in ten thousand, of the last layer's last matrix.
    let down = &model.weights.layers[23].down.weight;
    let tiles = &there.layers[23].down;
    let bytes = there
        .read(tiles.data, 32 * tiles.stride())
        .expect("on the GPU");
    let mut row = vec![0.0; down.cols];
    for r in (0..down.rows).step_by(9_999) {
        down.row_to_f32(r, &mut row);
        for (i, &expected) in row.iter().enumerate() {
            assert_eq!(
                value(&bytes, tiles, r / TILE, r % TILE, i),
                expected,
                "{r}, {i}"
            );
        }
    }
}
