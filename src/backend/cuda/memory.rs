//! Memory on the device, page-locked memory of the host, and copies between them.
#![allow(unsafe_code)] // calls into the driver

use super::{Device, driver::check};
use crate::hub::human;
use anyhow::{Result, bail};
use cudarc::driver::sys::{self, CUresult};
use std::{
    marker::PhantomData,
    ops::{Deref, DerefMut, Range},
    ptr::null_mut,
    sync::Arc,
};

/// A type whose every bit pattern is a value, so that the device may write it.
///
/// # Safety
/// It has no padding, no niche and no reference.
pub unsafe trait Plain: Copy + Send + Sync + 'static {}

macro_rules! plain {
    ($($t:ty),*) => { $(
        // SAFETY: a number.
        unsafe impl Plain for $t {}
    )* };
}
plain!(u8, i8, u16, i16, u32, i32, u64, i64, f32, f64, half::f16);

/// The bytes of values `at..at + len` of `total`.
///
/// # Panics
/// When there are no such values.
fn span<T>(at: usize, len: usize, total: usize) -> Range<usize> {
    let end = at.checked_add(len).filter(|&end| end <= total);
    let end = end.unwrap_or_else(|| panic!("values {at}..{at}+{len} of {total}"));
    at * size_of::<T>()..end * size_of::<T>()
}

/// Values on the device. Kernels that use it must have ended when it is dropped; the driver waits.
pub struct Buffer<T> {
    device: Arc<Device>,
    at: u64,
    len: usize,
    of: PhantomData<T>,
}

impl<T: Plain> Buffer<T> {
    pub(super) fn new(device: Arc<Device>, at: u64, len: usize) -> Buffer<T> {
        Buffer {
            device,
            at,
            len,
            of: PhantomData,
        }
    }

    /// Its address on the device.
    pub fn ptr(&self) -> u64 {
        self.at
    }

    /// The address of value `index`, or of the end.
    ///
    /// # Panics
    /// Beyond the end.
    pub fn at(&self, index: usize) -> u64 {
        self.at + span::<T>(index, 0, self.len).start as u64
    }

    /// Values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes.
    pub fn bytes(&self) -> u64 {
        (self.len * size_of::<T>()) as u64
    }

    /// Copies `data` to values `at..`; returns when it has been taken.
    ///
    /// # Panics
    /// Beyond the end.
    pub fn upload(&mut self, at: usize, data: &[T]) -> Result<()> {
        let bytes = span::<T>(at, data.len(), self.len);
        self.device.bind()?;
        let (to, stream) = (self.at + bytes.start as u64, self.device.stream());
        // SAFETY: in bounds on both sides; `data` lives until the copy has ended, below.
        let result =
            unsafe { sys::cuMemcpyHtoDAsync_v2(to, data.as_ptr().cast(), bytes.len(), stream) };
        check(result, || "copying to the GPU".into())?;
        self.device.synchronize()
    }

    /// Copies values `at..` to `out`, once everything that was started before has ended.
    ///
    /// # Panics
    /// Beyond the end.
    pub fn download(&self, at: usize, out: &mut [T]) -> Result<()> {
        let bytes = span::<T>(at, out.len(), self.len);
        self.device.bind()?;
        let (from, stream) = (self.at + bytes.start as u64, self.device.stream());
        // SAFETY: in bounds on both sides; `out` lives until the copy has ended, below.
        let result = unsafe {
            sys::cuMemcpyDtoHAsync_v2(out.as_mut_ptr().cast(), from, bytes.len(), stream)
        };
        check(result, || "copying from the GPU".into())?;
        self.device.synchronize()
    }

    /// Starts setting all bytes to zero.
    pub fn zero(&mut self) -> Result<()> {
        self.device.bind()?;
        let (bytes, stream) = (self.len * size_of::<T>(), self.device.stream());
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the whole of this buffer.
        let result = unsafe { sys::cuMemsetD8Async(self.at, 0, bytes, stream) };
        check(result, || "clearing GPU memory".into())
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: allocated by `Device::alloc`, not used again; waits for what uses it.
            unsafe { sys::cuMemFree_v2(self.at) };
        }
    }
}

/// Page-locked host memory: copies to and from it run at the link's full speed, beside the program,
/// and kernels can use it where it is.
pub struct Pinned<T> {
    device: Arc<Device>,
    at: *mut T,
    len: usize,
}
// SAFETY: it owns its memory, as a `Box` does.
unsafe impl<T: Plain> Send for Pinned<T> {}
// SAFETY: as above.
unsafe impl<T: Plain> Sync for Pinned<T> {}

impl<T: Plain> Pinned<T> {
    pub(super) fn new(device: Arc<Device>, len: usize, what: &str) -> Result<Pinned<T>> {
        device.bind()?;
        let bytes = (len * size_of::<T>()).max(1);
        let mut at = null_mut();
        // SAFETY: the context is current; the pointer is to an address.
        match unsafe { sys::cuMemHostAlloc(&mut at, bytes, sys::CU_MEMHOSTALLOC_PORTABLE) } {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => bail!(
                "{what}: {} of page-locked memory needed, and the system has no room for it (see \
                 `ulimit -l`)",
                human(bytes as u64)
            ),
            result => check(result, || format!("allocating {what}"))?,
        }
        // SAFETY: that many bytes were just allocated.
        unsafe { at.cast::<u8>().write_bytes(0, bytes) };
        let at = at.cast();
        Ok(Pinned { device, at, len })
    }

    /// Its address for kernels.
    pub fn ptr(&self) -> u64 {
        // Host and device addresses are the same on every system that has CUDA 13.
        self.at.addr() as u64
    }
}

impl<T> Deref for Pinned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: allocated and set in `new`; the device writes plain values only.
        unsafe { std::slice::from_raw_parts(self.at, self.len) }
    }
}

impl<T> DerefMut for Pinned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.len) }
    }
}

impl<T> Drop for Pinned<T> {
    fn drop(&mut self) {
        // Copies may be under way.
        if self.device.synchronize().is_ok() {
            // SAFETY: allocated by `new`, not used again.
            unsafe { sys::cuMemFreeHost(self.at.cast()) };
        }
    }
}

impl Device {
    /// Starts copying the first `len` bytes of `from` to the address `to`, which must have room.
    pub(super) fn upload_to(&self, to: u64, from: &Pinned<u8>, len: usize) -> Result<()> {
        let from = from[..len].as_ptr().cast();
        self.bind()?;
        // SAFETY: in bounds here, on the device by the caller's word (a wrong address is the driver's
        // error); memory is freed only after the stream has ended.
        let result = unsafe { sys::cuMemcpyHtoDAsync_v2(to, from, len, self.stream()) };
        check(result, || "copying to the GPU".into())
    }

    /// Starts copying the first `len` values of `from` to values `at..` of `to`. `from` must stay as it
    /// is until the copy has ended.
    ///
    /// # Panics
    /// Beyond an end.
    pub fn upload_async<T: Plain>(
        &self,
        to: &Buffer<T>,
        at: usize,
        from: &Pinned<T>,
        len: usize,
    ) -> Result<()> {
        let bytes = span::<T>(at, len, to.len);
        span::<T>(0, len, from.len);
        self.bind()?;
        let (to, from) = (to.at + bytes.start as u64, from.at.cast());
        // SAFETY: in bounds on both sides; memory is freed only after the stream has ended.
        let result = unsafe { sys::cuMemcpyHtoDAsync_v2(to, from, bytes.len(), self.stream()) };
        check(result, || "copying to the GPU".into())
    }

    /// Starts copying values `at..` of `from` to the first `len` values of `to`, which hold them when
    /// the stream has come so far.
    ///
    /// # Panics
    /// Beyond an end.
    pub fn download_async<T: Plain>(
        &self,
        from: &Buffer<T>,
        at: usize,
        to: &mut Pinned<T>,
        to_at: usize,
        len: usize,
    ) -> Result<()> {
        let bytes = span::<T>(at, len, from.len);
        let there = span::<T>(to_at, len, to.len);
        self.bind()?;
        let to = to.at.cast::<u8>().wrapping_add(there.start).cast();
        let from = from.at + bytes.start as u64;
        // SAFETY: in bounds on both sides; memory is freed only after the stream has ended.
        let result = unsafe { sys::cuMemcpyDtoHAsync_v2(to, from, bytes.len(), self.stream()) };
        check(result, || "copying from the GPU".into())
    }

    /// Starts copying `len` values of `from`, from `at` on, to values `to_at..` of `to`. The two may be
    /// one buffer, where the ranges don't overlap.
    ///
    /// # Panics
    /// Beyond an end.
    pub fn copy<T: Plain>(
        &self,
        from: &Buffer<T>,
        at: usize,
        to: &Buffer<T>,
        to_at: usize,
        len: usize,
    ) -> Result<()> {
        let bytes = span::<T>(at, len, from.len);
        let to = to.at + span::<T>(to_at, len, to.len).start as u64;
        self.bind()?;
        let from = from.at + bytes.start as u64;
        // SAFETY: in bounds on both sides; memory is freed only after the stream has ended.
        let result = unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes.len(), self.stream()) };
        check(result, || "copying on the GPU".into())
    }
}
