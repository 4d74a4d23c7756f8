//! Whole-row kernels against the same in f64 on the host.

use super::*;
use crate::{
    backend::cuda::{
        batch::Row,
        gemm::{
            Shape,
            tests::{Random, download, error, paired, upload},
        },
    },
    config::{Rope, SWIGLU_LIMIT},
};
use half::{bf16, f16};

fn config(hidden: usize, experts: usize, used: usize) -> Config {
    Config {
        name: "test".into(),
        layers: 2,
        hidden,
        heads: 2,
        kv_heads: 1,
        head_dim: 64,
        experts,
        experts_used: used,
        expert_width: 64,
        vocab: 32,
        context: 1 << 12,
        window: 128,
        rms_eps: 1e-5,
        swiglu_limit: SWIGLU_LIMIT,
        rope: Rope {
            theta: 150_000.0,
            factor: 32.0,
            original_context: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            rounded: false,
        },
    }
}

fn token(token: usize, segment: i32) -> Row {
    Row {
        token: token as i32,
        position: 0,
        segment,
        append: 1,
    }
}

/// x / sqrt(mean(x^2) + 1e-5) * weight.
fn rmsnorm(x: &[f64], weight: &[f32]) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let scale = 1.0 / (mean + f64::from(1e-5f32)).sqrt();
    let weight = weight.iter().map(|&w| f64::from(w));
    x.iter().zip(weight).map(|(x, w)| x * scale * w).collect()
}

#[test]
fn gpu_rows_embed() {
    let device = Device::open().unwrap();
    let rng = &mut Random(21);
    let (hidden, vocab) = (160, 50);
    let kernels = RowKernels::new(&device, &config(hidden, 4, 2)).unwrap();
    let values = rng.values(hidden * vocab, 1.0);
    let q8_0 = |block: &[f32]| {
        let d = f16::from_f32(block.iter().fold(0.0f32, |m, v| m.max(v.abs())) / 127.0);
        let q = block.iter().map(|v| (v / d.to_f32()).round() as i8 as u8);
        d.to_le_bytes().into_iter().chain(q).collect::<Vec<u8>>()
    };
    let tables: [(i32, Vec<u8>, f64); 4] = [
        (
            0,
            values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            0.0,
        ),
        (
            1,
            (values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes())).collect(),
            4e-4,
        ),
        (8, values.chunks_exact(32).flat_map(q8_0).collect(), 1e-2),
        (
            30,
            (values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes())).collect(),
            3e-3,
        ),
    ];
    let tokens: Vec<Row> = (0..20).map(|_| token(rng.below(vocab), 0)).collect();
    let on_tokens = upload(&device, &tokens);
    for (format, bytes, bar) in tables {
        let table = upload(&device, &bytes);
        let x = upload(&device, &vec![f32::NAN; tokens.len() * hidden]);
        kernels
            .embed(
                (table.ptr(), format),
                on_tokens.ptr(),
                x.ptr(),
                tokens.len(),
            )
            .unwrap();
        let x = download(&x);
        let want = |i: usize| values[tokens[i / hidden].token as usize * hidden + i % hidden];
        let error = error((0..x.len()).map(|i| (f64::from(x[i]), f64::from(want(i)))));
        assert!(error <= bar, "type {format}: off by {error}");
    }
}

#[test]
fn gpu_rows_norm_router() {
    let device = Device::open().unwrap();
    let rng = &mut Random(22);
    for (rows, hidden, experts, used, listed) in [
        (1, 160, 5, 2, false),
        (9, 2880, 32, 4, false),
        (33, 2880, 128, 4, true),
        (700, 160, 4, 4, false),
        (700, 96, 128, 8, true),
    ] {
        let kernels = RowKernels::new(&device, &config(hidden, experts, used)).unwrap();
        let stride = padded(hidden);
        let x = rng.values(rows * hidden, 2.0);
        let list: Vec<i32> = (0..rows as i32).filter(|r| r % 2 == 0 || !listed).collect();
        let y = rng.values(list.len() * used * hidden, 1.0);
        let (norm, bias) = (rng.values(hidden, 1.0), rng.values(experts, 1.0));
        let weight = rng.values(experts * hidden, 0.05);
        let on_x = upload(&device, &x);
        let (on_y, on_norm) = (upload(&device, &y), upload(&device, &norm));
        let (on_weight, on_bias) = (upload(&device, &weight), upload(&device, &bias));
        let on_list = upload(&device, &list);
        // The last row has no token.
        let tokens: Vec<Row> = (0..rows)
            .map(|r| token(0, if r + 1 == rows { -1 } else { 0 }))
            .collect();
        let on_tokens = upload(&device, &tokens);
        let hs = [(); 2].map(|()| upload(&device, &vec![f16::ZERO; list.len() * stride]));
        let ids = upload(&device, &vec![-2; list.len() * used]);
        let chosen = upload(&device, &vec![f32::NAN; list.len() * used]);
        let some = Rows {
            list: if listed { on_list.ptr() } else { 0 },
            count: list.len(),
        };
        let y_at = Some(on_y.ptr());
        kernels
            .norm(on_x.ptr(), y_at, hs[0].ptr(), on_norm.ptr(), some)
            .unwrap();
        let router = Router {
            norm: on_norm.ptr(),
            weight: on_weight.ptr(),
            bias: on_bias.ptr(),
        };
        let routes = Routes {
            ids: ids.ptr(),
            chosen: chosen.ptr(),
            order: 0,
            work: 0,
            touched: 0,
            count: 0,
            experts,
            used,
            shape: Shape::few(16),
        };
        kernels
            .router(
                on_x.ptr(),
                hs[1].ptr(),
                &router,
                on_tokens.ptr(),
                some,
                &routes,
            )
            .unwrap();
        let (got_x, ids, chosen) = (download(&on_x), download(&ids), download(&chosen));
        let [h, h2] = hs.map(|h| download(&h));
        let (mut xs, mut hs, mut weights) = (Vec::new(), Vec::new(), Vec::new());
        for (i, &r) in list.iter().enumerate() {
            let r = r as usize;
            let sum = |k: usize| {
                let y = (0..used).map(|slot| f64::from(y[(i * used + slot) * hidden + k]));
                f64::from(x[r * hidden + k]) + y.sum::<f64>()
            };
            let summed: Vec<f64> = (0..hidden).map(sum).collect();
            let normed = rmsnorm(&summed, &norm);
            for k in 0..hidden {
                xs.push((f64::from(got_x[r * hidden + k]), summed[k]));
                hs.push((f64::from(h[i * stride + paired(k)]), normed[k]));
                hs.push((f64::from(h2[i * stride + paired(k)]), normed[k]));
            }
            let ids = &ids[i * used..][..used];
            if tokens[r].segment < 0 {
                assert_eq!(ids, vec![-1; used]);
                continue;
            }
            let logit = |e: usize| {
                let w = weight[e * hidden..][..hidden].iter().zip(&normed);
                w.map(|(&w, h)| f64::from(w) * h).sum::<f64>() + f64::from(bias[e])
            };
            let logits: Vec<f64> = (0..experts).map(logit).collect();
            let mut best: Vec<usize> = (0..experts).collect();
            best.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
            let total: f64 = best[..used]
                .iter()
                .map(|&e| (logits[e] - logits[best[0]]).exp())
                .sum();
            for (slot, &id) in ids.iter().enumerate() {
                let off = logits[id as usize] - logits[best[slot]];
                assert!(
                    off.abs() < 1e-4,
                    "row {r}: expert {id}, expected {}",
                    best[slot]
                );
                let want = (logits[best[slot]] - logits[best[0]]).exp() / total;
                weights.push((f64::from(chosen[i * used + slot]), want));
            }
        }
        let what = format!("{rows} rows of {hidden}, {experts} experts");
        for (name, pairs, bar) in [("x", xs, 1e-6), ("h", hs, 4e-4), ("weights", weights, 1e-4)] {
            let error = error(pairs.into_iter());
            assert!(error <= bar, "{what}: {name} off by {error}");
        }
    }
}

#[test]
fn gpu_rows_pair() {
    let device = Device::open().unwrap();
    let kernels = RowKernels::new(&device, &config(64, 4, 2)).unwrap();
    let values: Vec<f16> = (0..33 * 128).map(|i| f16::from_bits(i as u16)).collect();
    let h = upload(&device, &values);
    kernels.pair(h.ptr(), values.len()).unwrap();
    let h = download(&h);
    for (i, value) in values.iter().enumerate() {
        assert_eq!(h[paired(i)], *value);
    }
}
