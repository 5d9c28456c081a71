//! The one shipped binary.

/// It keeps the large blocks that packets and tensors come in; the system's gives them back and
/// takes them anew.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    allfold_launcher::main()
}
