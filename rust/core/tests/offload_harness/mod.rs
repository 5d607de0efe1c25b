//! What must hold of any offload header in front of any frame. Property tests and a fuzz target (`rust/fuzz`) search for one
//! of which it does not.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use vbnet_core::net::offload::{OFFLOAD_HEADER_BYTES, Request, SEGMENTS_MAX};

/// Cuts a frame to pieces, all of them.
pub fn cut(request: &Request, frame: &[u8]) -> Vec<Vec<u8>> {
    let longest = request.longest(frame.len() as u32) as usize;
    let segment = |index| {
        let mut out = vec![0xee; longest];
        let length = request.segment(frame, index, &mut out).unwrap();
        out.truncate(length);
        out
    };
    assert_eq!(None, request.segment(frame, request.frames(frame.len() as u32), &mut vec![0; longest]));
    (0..request.frames(frame.len() as u32)).map(segment).collect()
}

/// A header is refused, or is work of a bounded size that stays inside the frame and loses nothing of it.
pub fn assert_harmless(asked: &[u8; OFFLOAD_HEADER_BYTES], frame: &[u8]) {
    let Ok(request) = Request::parse(asked, frame) else { return };
    let length = frame.len() as u32;
    assert!(request.longest(length) <= length.max(1));
    assert!(request.frames(length) <= SEGMENTS_MAX);
    if request.is_segmentation() {
        let segments = cut(&request, frame);
        let headers = request.longest(length) as usize - usize::from(u16::from_le_bytes([asked[4], asked[5]]));
        let payload: usize = segments.iter().map(|segment| segment.len() - headers).sum();
        assert_eq!(frame.len() - headers, payload);
    } else if !request.is_nothing() {
        assert!(request.complete(&mut frame.to_vec()));
    }
    // What a receiver would be told is the same request.
    let told = request.header();
    assert!(request.is_nothing() || Request::parse(&told, frame) == Ok(request));
    // A request and a frame that do not belong together: nothing happens, or something harmless.
    let _ = request.complete(&mut frame[..frame.len() / 2].to_vec());
    let _ = request.segment(&frame[..frame.len() / 2], 0, &mut [0; 100]);
    let _ = request.segment(frame, u32::MAX, &mut [0; 100]);
}
