//! Buffers that a call takes in and gives back.

use crate::alloc::Buffer;
use crate::reduce::Element;

/// A buffer that a call which was started takes in and gives back: a vector, one of
/// [`Communicator::alloc`](crate::Communicator::alloc), or `()` where there is nothing to move.
pub trait Owned: Default + Send + 'static + sealed::Sealed {
    /// What it holds.
    type Element: Element;

    /// They stay where they are when the buffer itself is moved.
    #[doc(hidden)]
    fn elements(&mut self) -> &mut [Self::Element];
}

impl<T: Element> Owned for Vec<T> {
    type Element = T;

    fn elements(&mut self) -> &mut [T] {
        self
    }
}

impl<T: Element> Owned for Buffer<T> {
    type Element = T;

    fn elements(&mut self) -> &mut [T] {
        self
    }
}

impl Owned for () {
    type Element = u8;

    fn elements(&mut self) -> &mut [u8] {
        &mut []
    }
}

mod sealed {
    use super::{Buffer, Element};

    pub trait Sealed {}

    impl<T: Element> Sealed for Vec<T> {}
    impl<T: Element> Sealed for Buffer<T> {}
    impl Sealed for () {}
}
