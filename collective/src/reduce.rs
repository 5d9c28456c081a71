//! Element types and operations; the kernels that combine two buffers.
