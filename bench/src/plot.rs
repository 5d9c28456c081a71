//! Where a plot goes.

use crate::Error;
use crate::destination;
use crate::options::has_suffix;
use std::path::Path;
pub(crate) fn check_name(path: &Path) -> Result<(), Error> {
    match has_suffix(path, "svg") {
        true => Ok(()),
        false => Err(Error::Suffix { option: "--plot", suffix: "svg", path: path.into() }),
    }
}
pub(crate) fn check(path: &Path) -> Result<(), Error> {
    destination::check("--plot", path)
}
