//! `vbnet._native`: conversions between Python and `vbnet-core`, nothing else.
