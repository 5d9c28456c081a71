//! The table's way out: standard output, which may be closed at any time.

use std::io::{self, Write};

/// Prints as long as someone reads; what went wrong is kept for the end, so that the ranks stay in
/// step.
pub(crate) struct Console<'a> {
    out: &'a mut dyn Write,
    state: State,
}

/// Whether the output still takes lines.
#[derive(Debug)]
pub(crate) enum State {
    Open,
    /// The reader has seen enough, as in `allfold bench | head`: no error.
    Closed,
    Failed(io::Error),
}

impl<'a> Console<'a> {
    pub(crate) fn new(out: &'a mut dyn Write) -> Self {
        let state = State::Open;
        Self { out, state }
    }

    /// Prints and flushes, so that a row is seen when it is measured.
    pub(crate) fn print(&mut self, text: &str) {
        if !matches!(self.state, State::Open) {
            return;
        }
        if let Err(error) = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()) {
            self.state = match error.kind() {
                io::ErrorKind::BrokenPipe => State::Closed,
                _ => State::Failed(error),
            };
        }
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    pub(crate) fn into_state(self) -> State {
        self.state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Broken(io::ErrorKind);

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_closed_output_is_no_failure() {
        let mut broken = Broken(io::ErrorKind::BrokenPipe);
        let mut console = Console::new(&mut broken);
        console.print("row\n");
        console.print("row\n");
        assert!(matches!(console.into_state(), State::Closed));
    }

    #[test]
    fn a_full_disk_is_one() {
        let mut broken = Broken(io::ErrorKind::StorageFull);
        let mut console = Console::new(&mut broken);
        console.print("row\n");
        assert!(matches!(console.state(), State::Failed(_)));
    }
}
