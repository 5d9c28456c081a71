//! Whole processes under test: what the test files share.
