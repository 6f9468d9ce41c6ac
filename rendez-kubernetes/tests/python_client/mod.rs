//! A participant that others have written: the leader election of the Kubernetes project's client for Python, with a `LeaseLock`, in
//! a process of its own.
#![allow(unreachable_pub)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use rendez_testkit::servers::KubernetesServer;

use crate::Killed;

/// Where `cargo xtask servers` puts it, below the target directory.
const FOLDER: &str = "servers/kubernetes-client";

pub struct Python {
    _process: Killed,
    said: Arc<Mutex<Vec<String>>>,
}

impl Python {
    pub fn start(server: &KubernetesServer, kubeconfig: &Path, name: &str, identity: &str, lease_seconds: u64) -> Self {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join(FOLDER);
        assert!(folder.is_dir(), "{} is missing: `cargo xtask servers` installs it", folder.display());
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python_client/participant.py");
        let mut command = Command::new(folder.join("bin/python"));
        command.arg(script).arg(kubeconfig).args([server.namespace(), name, identity, &lease_seconds.to_string()]);
        command.env("PYTHONPATH", folder.join("packages")).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let said = Arc::new(Mutex::new(Vec::new()));
        let saying = Arc::clone(&said);
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| saying.lock().unwrap().push(line)));
        Self { _process: Killed(process), said }
    }

    /// Whether it leads, by what it has said last.
    pub fn leads(&self) -> bool {
        self.said.lock().unwrap().last().is_some_and(|last| last == "leads")
    }
}
