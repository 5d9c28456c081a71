//! The one shipped binary.

fn main() -> std::process::ExitCode {
    allfold_launcher::main()
}
