//! Standard output, of which only rank 0 writes.

use std::io::{self, Write};

use crate::error::{Error, Result};

/// Lines on standard output, until its reader leaves: a training goes on without one.
#[derive(Debug, Default)]
pub(crate) struct Output {
    closed: bool,
}

impl Output {
    /// Writes one line at once.
    pub(crate) fn line(&mut self, line: &str) -> Result<()> {
        self.write(&mut io::stdout().lock(), line)
    }

    fn write(&mut self, to: &mut impl Write, line: &str) -> Result<()> {
        if self.closed {
            return Ok(());
        }
        match writeln!(to, "{line}").and_then(|()| to.flush()) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(())
            }
            Err(error) => Err(Error::Output { problem: error.to_string() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Pipe(io::ErrorKind, usize);

    impl Write for Pipe {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            self.1 += 1;
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_left_is_not_an_error() {
        let mut output = Output::default();
        let mut pipe = Pipe(io::ErrorKind::BrokenPipe, 0);
        output.write(&mut pipe, "one").unwrap();
        output.write(&mut pipe, "two").unwrap();
        assert_eq!(pipe.1, 1, "nothing is tried after the reader has left");
    }

    #[test]
    fn a_full_disk_is_an_error() {
        let mut pipe = Pipe(io::ErrorKind::StorageFull, 0);
        let error = Output::default().write(&mut pipe, "one").unwrap_err();
        assert!(error.to_string().starts_with("cannot write to standard output"));
        assert_eq!(error.exit_code(), 2);
    }
}
