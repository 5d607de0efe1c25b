//! Frame sizes of a traffic stream: one size, the Internet mix, or any repeating list.
//!
//! The simple IMIX is seven small, four middle and one full frame in twelve. They are dealt out evenly, so that any
//! stretch of traffic is mixed, and the order is the same every time: a run can be repeated. Sizes are those of frames
//! in a ring, header included, checksum (FCS) not. Source: RFC 6985 and the mix it describes as "simple IMIX".

use crate::error::{Error, Result};

/// The simple Internet mix: 7 × 60, 4 × 590, 1 × 1514 bytes.
pub const IMIX: [u32; 12] = [60, 590, 60, 60, 590, 60, 1514, 60, 590, 60, 590, 60];

/// What sizes a stream's frames have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sizes {
    /// All the same.
    Fixed(u32),
    /// [`IMIX`].
    Imix,
    /// Over and over.
    List(Vec<u32>),
}

impl Sizes {
    /// The repeating list of sizes, checked against what the device carries.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: the list is empty, or a size is outside `least..=most`.
    pub fn cycle(&self, least: u32, most: u32) -> Result<Box<[u32]>> {
        let sizes: Box<[u32]> = match self {
            Self::Fixed(size) => Box::new([*size]),
            Self::Imix => Box::new(IMIX),
            Self::List(sizes) => sizes.as_slice().into(),
        };
        if sizes.is_empty() {
            return Err(Error::Usage("a stream needs at least one frame size; got an empty list".to_owned()));
        }
        match sizes.iter().find(|size| !(least..=most).contains(size)) {
            None => Ok(sizes),
            Some(size) => Err(Error::Usage(format!(
                "frames of this stream are {least} to {most} bytes, header included; got {size}"
            ))),
        }
    }
}
