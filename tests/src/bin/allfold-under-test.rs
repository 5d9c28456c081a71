//! The shipped binary once more, where `cargo test` finds it; a rank of `train` does to itself what
//! a test tells it to.

fn main() -> std::process::ExitCode {
    allfold_tests::allfold()
}
