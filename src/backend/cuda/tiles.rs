//! The layout of weights on the device: tiles of 16 outputs, in units that the tensor cores' lanes read
//! with one load each (kernels/common.cuh, which describes a unit's bytes).

use crate::weights::Format;

/// Outputs of a tile.
pub const TILE: usize = 16;
/// Bytes of a unit.
pub const UNIT_BYTES: usize = 544;

/// What a unit holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum TileFormat {
    /// 64 inputs; the file's codes and exponents.
    Mxfp4 = 0,
    /// 32 inputs; the file's values and scales.
    Q8_0 = 1,
    /// 16 inputs, with a scale for each row and 32 inputs.
    F16 = 2,
}

impl TileFormat {
    /// What a matrix of `format` becomes. BF16 and F32 become F16 with a power of two as scale, chosen
    /// for each row and 32 inputs so that the largest value is near F16's largest: BF16 is then exact
    /// over 30 binades, F32 is rounded to 11 bits.
    pub fn of(format: Format) -> TileFormat {
        match format {
            Format::MXFP4 => TileFormat::Mxfp4,
            Format::Q8_0 => TileFormat::Q8_0,
            Format::F16 | Format::BF16 | Format::F32 => TileFormat::F16,
        }
    }

    /// What these tiles hold.
    pub fn of_tiles(tiles: &Tiles) -> TileFormat {
        match tiles.format {
            0 => TileFormat::Mxfp4,
            1 => TileFormat::Q8_0,
            _ => TileFormat::F16,
        }
    }

    /// Inputs of a unit.
    pub fn unit_inputs(self) -> usize {
        match self {
            TileFormat::Mxfp4 => 64,
            TileFormat::Q8_0 => 32,
            TileFormat::F16 => 16,
        }
    }
}

/// Which source rows a tile's 16 rows are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Order {
    /// Tile j: rows 16 j to 16 j + 15.
    Natural = 0,
    /// Four tiles for each head of 64 rows; tile j: its rows 8 j to 8 j + 7, then those 32 further, which
    /// RoPE turns together.
    Heads = 1,
    /// Tile j: rows 8 j to 8 j + 7 of one matrix, then those of another.
    Pairs = 2,
}

/// A matrix in tiles on the device, or several of one shape (experts). The same in common.cuh.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Tiles {
    /// Its address.
    pub data: u64,
    /// [`TileFormat`].
    pub format: i32,
    /// Tiles of one matrix.
    pub tiles: i32,
    /// Units of one tile.
    pub units: i32,
    /// Outputs of one matrix, without those that fill the last tile.
    pub outputs: i32,
}

impl Tiles {
    /// The shape of `outputs` by `inputs`, without an address.
    pub fn shape(format: TileFormat, outputs: usize, inputs: usize) -> Tiles {
        Tiles {
            data: 0,
            format: format as i32,
            tiles: outputs.div_ceil(TILE) as i32,
            units: inputs.next_multiple_of(32).div_ceil(format.unit_inputs()) as i32,
            outputs: outputs as i32,
        }
    }

    /// Bytes of one matrix: from one expert to the next.
    pub fn stride(&self) -> usize {
        self.tiles as usize * self.units as usize * UNIT_BYTES
    }
}
