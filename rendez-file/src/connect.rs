//! Looks whether a folder fits before anything is kept in it.

use std::fs;
use std::io;
use std::path::Path;

use rustix::fs::Access;

use crate::errors::{Failure, at};
use crate::files::{create_folders, network_file_system};
use crate::keys;
use crate::options::FileOptions;
use rendez_core::ErrorKind;

/// Makes the folder where it does not exist and its parent does, and refuses one that does not fit.
pub(crate) fn prepare(root: &Path, options: &FileOptions) -> Result<(), Failure> {
    make(root)?;
    let layout = keys::layout_folder(root);
    if !layout.is_dir() {
        refuse_foreign(root)?;
    }
    if let Some(kind) = network_file_system(root).map_err(at("cannot look at", root))?
        && !options.allow_network_file_system
    {
        return Err(fatal(format!(
            "{} is on {kind}: locks there do not do what they do on a disk of this host. Use a folder on a local disk; \
             or, if all processes run on one host and you know that locks work, set allow_network_file_system",
            root.display()
        )));
    }
    create_folders(root, &layout).map_err(at("cannot make", &layout))?;
    for folder in [root, &layout] {
        let may = rustix::fs::access(folder, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK);
        may.map_err(|error| Failure::io("cannot write in", folder, error.into()))?;
    }
    Ok(())
}

fn make(root: &Path) -> Result<(), Failure> {
    match fs::metadata(root) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(fatal(format!("{} is no folder: name one", root.display()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => match create_folders(root, root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(fatal(format!(
                "{} cannot be made, since the folder above it does not exist: make that first",
                root.display()
            ))),
            other => other.map_err(at("cannot make", root)),
        },
        Err(error) => Err(Failure::io("cannot look at", root, error)),
    }
}

/// A folder that holds anything but a layout of ours is somebody else's.
fn refuse_foreign(root: &Path) -> Result<(), Failure> {
    for entry in fs::read_dir(root).map_err(at("cannot read", root))? {
        let name = entry.map_err(at("cannot read", root))?.file_name();
        let layout = name.to_str().and_then(|name| name.strip_prefix(keys::LAYOUT_PREFIX));
        match layout.and_then(|number| number.parse::<u32>().ok()) {
            // Another process was faster than we.
            Some(keys::LAYOUT) => {}
            Some(other) => {
                return Err(fatal(format!(
                    "{} has layout {other}, this release knows layout {}: use a release that knows it",
                    root.display(),
                    keys::LAYOUT
                )));
            }
            // What mkfs leaves.
            None if name == "lost+found" => {}
            None => {
                return Err(fatal(format!(
                    "{} holds other things ({}): name a folder of its own, empty or not there yet",
                    root.display(),
                    name.to_string_lossy()
                )));
            }
        }
    }
    Ok(())
}

fn fatal(what: String) -> Failure {
    Failure::new(ErrorKind::Fatal, format!("the file store: {what}"))
}
