//! The KV cache's bytes: f16, keys transposed in blocks of sixteen positions.
//!
//! Full-attention layers are paged: block `b` holds [`KV_BLOCK`] positions of every KV head, and a
//! sequence's block table names its blocks. Sliding layers keep a ring of `window` positions rounded
//! up, plus one step; the rings of all layers lie together, for each slot, and for each snapshot of a
//! slot's: to save or restore is one copy. In both, a step of 32 positions of one head is contiguous:
//! keys `[2, head_dim, 16]`, then values `[32, head_dim]`. Memory is mapped zeroed and untouched, so
//! it costs nothing until positions are written.
#![allow(unsafe_code)] // raw access by several threads

use super::kernels::attention::STEP;
use crate::{
    backend::{KV_BLOCK, Limits, window_steps},
    config::Config,
};
use anyhow::{Context, Result, ensure};
use half::f16;
use memmap2::MmapMut;

const _: () = assert!(
    KV_BLOCK == STEP,
    "a block of the paged cache is one attention step"
);

/// Where a layer's positions of one sequence live.
#[derive(Clone, Copy)]
pub enum Place<'a> {
    /// A full layer's block table.
    Blocks(&'a [u32]),
    /// A sliding layer's slot.
    Ring(usize),
}

/// All KV bytes of a back end.
pub struct Cache {
    /// By full layer, `[blocks, kv_heads]` steps.
    full: Vec<MmapMut>,
    /// `[slots, then snapshots; sliding layers; ring_steps; kv_heads]` steps.
    rings: MmapMut,
    slots: usize,
    sliding_layers: usize,
    kv_heads: usize,
    head_dim: usize,
    ring_steps: usize,
    /// By layer, where its mapping begins.
    base: Vec<*mut u16>,
}
// SAFETY: `base` points into the owned mappings; `step` and `append` state who may call when.
unsafe impl Send for Cache {}
// SAFETY: as above.
unsafe impl Sync for Cache {}

impl Cache {
    /// Maps room for `limits`.
    pub fn new(config: &Config, limits: Limits) -> Result<Cache> {
        // Of a window longer than any sequence only what can be filled.
        let window = config.window.min(limits.kv_blocks.saturating_mul(KV_BLOCK));
        let ring_steps = window_steps(window);
        let step_bytes = config.kv_heads * 2 * STEP * config.head_dim * 2;
        let map = |steps: Option<usize>, what: &str| -> Result<MmapMut> {
            let bytes = steps
                .and_then(|steps| steps.checked_mul(step_bytes))
                .with_context(|| format!("{what}: larger than the address space"))?;
            let mut options = memmap2::MmapOptions::new();
            options.len(bytes.max(1)).no_reserve_swap();
            let mapping = options
                .map_anon()
                .with_context(|| format!("no address space for {bytes} bytes of {what}"))?;
            #[cfg(target_os = "linux")]
            let _ = mapping.advise(memmap2::Advice::HugePage);
            Ok(mapping)
        };
        let places = limits.slots.checked_add(limits.snapshots);
        let steps = places.and_then(|n| n.checked_mul(config.sliding_layers() * ring_steps));
        let mut rings = map(
            steps,
            "sliding windows (make room for fewer sequences or snapshots)",
        )?;
        let (mut full, mut base) = (Vec::new(), Vec::new());
        for layer in 0..config.layers {
            if config.is_sliding(layer) {
                base.push(rings.as_mut_ptr().cast::<u16>());
            } else {
                let mut mapping = map(
                    Some(limits.kv_blocks),
                    "KV cache (use a smaller --ctx-size)",
                )?;
                base.push(mapping.as_mut_ptr().cast::<u16>());
                full.push(mapping);
            }
        }
        ensure!(base.iter().all(|p| p.is_aligned()), "unaligned mapping");
        Ok(Cache {
            full,
            rings,
            slots: limits.slots,
            sliding_layers: config.sliding_layers(),
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            ring_steps,
            base,
        })
    }

    /// Bytes of one step of all KV heads: a block of one layer.
    fn step_bytes(&self) -> usize {
        self.kv_heads * 2 * STEP * self.head_dim * size_of::<u16>()
    }

    /// Bytes of all rings of one slot, or of one snapshot.
    fn rings_bytes(&self) -> usize {
        self.sliding_layers * self.ring_steps * self.step_bytes()
    }

    /// Copies a slot's rings to a snapshot's; both are within the limits.
    pub fn save(&mut self, slot: usize, snapshot: usize) {
        self.copy_rings(slot, self.slots + snapshot);
    }

    /// Copies a snapshot's rings to a slot's; both are within the limits.
    pub fn restore(&mut self, slot: usize, snapshot: usize) {
        self.copy_rings(self.slots + snapshot, slot);
    }

    fn copy_rings(&mut self, from: usize, to: usize) {
        let bytes = self.rings_bytes();
        self.rings
            .copy_within(from * bytes..(from + 1) * bytes, to * bytes);
    }

    /// Copies a block of every full layer to another; both are within the limits.
    pub fn copy_block(&mut self, from: u32, to: u32) {
        let bytes = self.step_bytes();
        let (from, to) = (from as usize * bytes, to as usize * bytes);
        for layer in &mut self.full {
            layer.copy_within(from..from + bytes, to);
        }
    }

    /// Keys and values of the step that holds `position`.
    ///
    /// # Safety
    /// `place` must lie within the limits, and no thread may append to this step of this head.
    pub unsafe fn step(
        &self,
        layer: usize,
        place: Place,
        head: usize,
        position: usize,
    ) -> (&[u16], &[u16]) {
        let half = STEP * self.head_dim;
        // SAFETY: in bounds by `offset`; no writer by the caller's promise.
        unsafe {
            let at = self.base[layer].add(self.offset(layer, place, head, position));
            (
                std::slice::from_raw_parts(at, half),
                std::slice::from_raw_parts(at.add(half), half),
            )
        }
    }

    /// Writes one position of one head; values beyond f16 are clamped to its largest.
    ///
    /// # Safety
    /// As [`Cache::step`], and no other thread may use this step of this head.
    pub unsafe fn append(
        &self,
        layer: usize,
        place: Place,
        head: usize,
        position: usize,
        k: &[f32],
        v: &[f32],
    ) {
        let d = self.head_dim;
        assert!(k.len() == d && v.len() == d);
        let half = |x: f32| f16::from_f32(x.clamp(-65504.0, 65504.0)).to_bits();
        let (block, lane) = (position % STEP / 16, position % 16);
        // SAFETY: in bounds by `offset`; exclusive by the caller's promise.
        unsafe {
            let at = self.base[layer].add(self.offset(layer, place, head, position));
            for i in 0..d {
                *at.add((block * d + i) * 16 + lane) = half(k[i]);
                *at.add(STEP * d + position % STEP * d + i) = half(v[i]);
            }
        }
    }

    /// Offset in u16 of the step; panics outside the mapping.
    fn offset(&self, layer: usize, place: Place, head: usize, position: usize) -> usize {
        let step = position / STEP;
        let (step, map) = match place {
            Place::Blocks(table) => (table[step] as usize, &self.full[layer / 2]),
            Place::Ring(slot) => (
                (slot * self.sliding_layers + layer / 2) * self.ring_steps + step % self.ring_steps,
                &self.rings,
            ),
        };
        let size = 2 * STEP * self.head_dim;
        let offset = (step * self.kv_heads + head) * size;
        assert!((offset + size) * 2 <= map.len() && head < self.kv_heads);
        offset
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::config::{Rope, SWIGLU_LIMIT};

    /// Bytes in memory of the mapping that holds `at`.
    fn resident(at: *const u8) -> usize {
        let maps = std::fs::read_to_string("/proc/self/smaps").expect("smaps");
        let mut lines = maps.lines();
        let holds = |line: &str| {
            let range = line.split(' ').next().and_then(|r| r.split_once('-'));
            let ends = range.map(|(a, b)| [a, b].map(|x| usize::from_str_radix(x, 16)));
            matches!(ends, Some([Ok(a), Ok(b)]) if (a..b).contains(&at.addr()))
        };
        assert!(lines.any(holds), "no mapping holds it");
        let line = lines.find_map(|l| l.strip_prefix("Rss:")).expect("Rss");
        let kib = line.trim().trim_end_matches(" kB").parse::<usize>();
        kib.expect("a number") * 1024
    }

    /// 256 slots, 100,000 blocks and 2,000 snapshots of gpt-oss-20b are 88 GB of addresses; memory is
    /// what was written, give or take a huge page at its ends.
    #[test]
    fn room_costs_nothing_until_it_is_used() {
        let config = Config {
            name: "released".into(),
            layers: 24,
            hidden: 2880,
            heads: 64,
            kv_heads: 8,
            head_dim: 64,
            experts: 32,
            experts_used: 4,
            expert_width: 2880,
            vocab: 201_088,
            context: 131_072,
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
        };
        let limits = Limits {
            slots: 256,
            kv_blocks: 100_000,
            batch_tokens: 512,
            snapshots: 2000,
        };
        let mut cache = Cache::new(&config, limits).expect("address space");
        let before = resident(cache.rings.as_ptr());
        let (k, v) = ([1.5; 64], [2.5; 64]);
        for position in 0..128 {
            for head in 0..8 {
                for layer in 0..24 {
                    let place = match config.is_sliding(layer) {
                        true => Place::Ring(200),
                        false => Place::Blocks(&[7, 99_999, 8, 9]),
                    };
                    // SAFETY: within the limits, on one thread.
                    unsafe { cache.append(layer, place, head, position, &k, &v) };
                }
            }
        }
        cache.save(200, 1999);
        cache.restore(255, 1999);
        let snapshot = crate::backend::snapshot_bytes(&config) as usize;
        assert_eq!(snapshot, cache.rings_bytes());
        // Mappings that lie side by side are told as one: the blocks may count too.
        let (huge, written) = (2 << 20, resident(cache.rings.as_ptr()) - before);
        let most = 3 * (snapshot + 2 * huge) + 12 * 2 * huge;
        let least = 3 * snapshot / 5 * 4; // 128 positions of rings of 160
        assert!(
            (least..most).contains(&written),
            "{written} bytes for three places and 48 blocks"
        );
        // SAFETY: nobody writes.
        let (_, values) = unsafe { cache.step(22, Place::Ring(255), 7, 127) };
        assert!(values.iter().all(|&v| v == f16::from_f32(2.5).to_bits()));
    }
}
