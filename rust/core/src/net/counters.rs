//! How a kind of counter block declares its values.

/// Declares the counters of one kind of block: an enum whose variants are positions, and their names in that order.
macro_rules! counters {
    ($(#[$about:meta])* pub enum $kind:ident { $($(#[$doc:meta])* $counter:ident = $name:literal,)+ }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum $kind { $($(#[$doc])* $counter,)+ }

        impl $kind {
            /// Names of all counters, in the order of their positions.
            pub const NAMES: [&'static str; Self::COUNT] = [$($name,)+];
            /// How many there are.
            pub const COUNT: usize = [$($name,)+].len();
        }
    };
}
pub(crate) use counters;
