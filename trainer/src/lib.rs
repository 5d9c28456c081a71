//! Data-parallel training on candle.
