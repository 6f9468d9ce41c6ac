//! PostgreSQL's programs, the user that they run as, and the data of a fresh server.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

use super::postgres::{SUPERUSER, SUPERUSER_PASSWORD, give};
use super::program;
use super::wait::{Patience, READY_BOUND};
use super::{INSTALL_POSTGRES, ServerError, find_program, is_executable};

/// Where Debian has them, by version.
const DEBIAN: &str = "/usr/lib/postgresql";
/// The user of the Debian package. PostgreSQL and pgbouncer refuse to run as root.
const USER: &str = "postgres";
/// Counted up when the template is made in another way.
const TEMPLATE_FORMAT: u32 = 1;

/// The programs of one version, and who runs the servers.
#[derive(Debug, Clone)]
pub(super) struct Programs {
    folder: PathBuf,
    user: Option<(u32, u32)>,
}

impl Programs {
    /// The newest version of Debian's, else the one on `PATH`.
    pub(super) fn find() -> Result<Self, ServerError> {
        let versions = fs::read_dir(DEBIAN).into_iter().flatten().flatten();
        let newest = versions
            .filter_map(|entry| Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path().join("bin"))))
            .filter(|(_, folder)| is_executable(&folder.join("postgres")))
            .max();
        let folder = match newest {
            Some((_, folder)) => folder,
            None => {
                let server = find_program("postgres", INSTALL_POSTGRES)?;
                server.parent().map(Path::to_owned).unwrap_or_default()
            }
        };
        Ok(Self { folder, user: user()? })
    }

    /// A program that talks to a server, as the user that we are.
    pub(super) fn client(&self, name: &str) -> Command {
        clean(Command::new(self.folder.join(name)))
    }

    /// A program that works on a server's data, as the user that servers run as.
    pub(super) fn server(&self, name: &str) -> Command {
        self.as_user(&self.path(name))
    }

    /// Where a program is.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Any program as that user. The program `setpriv` becomes the other one, so the process id stays.
    pub(super) fn as_user(&self, program: &Path) -> Command {
        let Some((uid, gid)) = self.user else {
            return clean(Command::new(program));
        };
        let mut command = Command::new("setpriv");
        command.args([&format!("--reuid={uid}"), &format!("--regid={gid}"), "--clear-groups"]).arg(program);
        clean(command)
    }

    /// Gives a file to that user.
    pub(super) fn give(&self, path: &Path) -> Result<(), ServerError> {
        give(path, self.user)
    }

    /// Puts the data of a server into an empty folder, fast: all these servers have one system identifier.
    ///
    /// Making data takes most of a second, copying them a tenth of that; so there is a template of each version below
    /// the target directory.
    pub(super) async fn copy_data(&self, data: &Path) -> Result<(), ServerError> {
        let template = self.template().await?;
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(template.join(".")).arg(data);
        program::run(copy).await.map(drop)
    }

    /// Makes the data of a server in an empty folder, with a system identifier that no other has. Beside it, the
    /// folder `work` must belong to the user that servers run as.
    pub(super) async fn make_data(&self, work: &Path, data: &Path) -> Result<(), ServerError> {
        let password = work.join("password");
        fs::write(&password, SUPERUSER_PASSWORD).map_err(ServerError::io("write the superuser's password"))?;
        self.give(&password)?;
        let mut initdb = self.server("initdb");
        initdb.args(["-U", SUPERUSER, "-A", "scram-sha-256", "-E", "UTF8", "--locale=C", "-N"]);
        initdb.arg("--pwfile").arg(&password).arg("-D").arg(data).current_dir(work);
        program::run(initdb).await.map(drop)
    }

    async fn template(&self) -> Result<PathBuf, ServerError> {
        let version = program::run(self.client_version()).await?;
        let version = version.split_whitespace().nth(2).unwrap_or_default();
        let owner = self.user.map_or_else(|| rustix::process::geteuid().as_raw(), |(uid, _)| uid);
        let servers = program::target_folder()?.join("servers");
        fs::create_dir_all(&servers).map_err(ServerError::io(format!("create {}", servers.display())))?;
        let template = servers.join(format!("template-{version}-{owner}-{TEMPLATE_FORMAT}"));
        // Renamed there when it is whole, so whoever sees it can use it.
        if template.is_dir() {
            return Ok(template);
        }
        let lock = servers.join("template.lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&lock);
        let lock = lock.map_err(ServerError::io("open the lock of the template"))?;
        let mut patience = Patience::new("the template of a PostgreSQL server", READY_BOUND);
        while flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            patience.pause("another process makes it".to_owned()).await?;
        }
        if template.is_dir() {
            return Ok(template);
        }
        // The target directory may be where that user has no business; the folder for temporary files is not.
        let work = TempDir::with_prefix("rendez-initdb-").map_err(ServerError::io("create a folder"))?;
        self.give(work.path())?;
        let data = work.path().join("data");
        self.make_data(work.path(), &data).await?;
        let partial = servers.join("template-partial");
        if partial.exists() {
            fs::remove_dir_all(&partial).map_err(ServerError::io(format!("remove {}", partial.display())))?;
        }
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(&data).arg(&partial);
        program::run(copy).await?;
        fs::rename(&partial, &template).map_err(ServerError::io(format!("create {}", template.display())))?;
        Ok(template)
    }

    fn client_version(&self) -> Command {
        let mut command = self.client("postgres");
        command.arg("--version");
        command
    }
}

/// The user for servers, if we are root and cannot be it ourselves.
fn user() -> Result<Option<(u32, u32)>, ServerError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd").map_err(ServerError::io("read /etc/passwd"))?;
    let ids = user_ids(&users, USER);
    ids.map(Some).ok_or_else(|| ServerError::Missing {
        program: format!("for the user {USER} (root must not run PostgreSQL)"),
        install: INSTALL_POSTGRES,
    })
}

/// User and group id in a text like `/etc/passwd`.
fn user_ids(users: &str, name: &str) -> Option<(u32, u32)> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let named = fields.next() == Some(name);
        let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
        named.then_some((uid, gid))
    })
}

/// Without the settings of the user's own database, and with messages in English.
fn clean(mut command: Command) -> Command {
    for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("PG")) {
        command.env_remove(key);
    }
    command.env("LC_ALL", "C");
    command
}

/// A text in SQL and in the configuration file.
pub(super) fn quoted_value(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_from_the_list_of_users() {
        let users = "root:x:0:0:root:/root:/bin/bash\npostgres2:x:7:8::/:/x\n+::::::\npostgres:x:101:104:,,,:/x:/y\n";
        assert_eq!(user_ids(users, "postgres"), Some((101, 104)));
        assert_eq!(user_ids(users, "nobody"), None);
    }
}
