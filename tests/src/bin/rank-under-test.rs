//! One rank, doing what its arguments say: the program of the tests about faults.

fn main() -> std::process::ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    allfold_tests::rank::main(&words)
}
