//! The shipped binary once more, where `cargo test` finds it.

fn main() -> std::process::ExitCode {
    allfold_launcher::main()
}
