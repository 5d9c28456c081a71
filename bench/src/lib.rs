//! nccl-tests for hosts without GPUs.
