//! Everything that is read from a peer, from bytes of the fuzzer's choice.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| allfold::fuzzing::wire(bytes));
