//! The client: from a kubeconfig file, the pod's service account, or the user's own; looked at once.

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use rendez_core::StoreError;

use crate::errors::{Stage, sort, timed_out};
use crate::options::{Address, KubernetesOptions, Namespace, fatal};

/// Where requests go.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) api: Api<Lease>,
    pub(crate) name: String,
    pub(crate) options: KubernetesOptions,
}

/// Makes a client as the address and the options say, and looks whether the server answers it.
pub(crate) async fn connect(address: Address, mut options: KubernetesOptions) -> Result<Server, StoreError> {
    options.kubeconfig = address.kubeconfig.or(options.kubeconfig);
    options.context = address.context.or(options.context);
    let (client, host) = client(&options).await?;
    look_at(client, host, &address.namespace, options).await
}

/// Makes a client, and says what its server is called.
pub(crate) async fn client(options: &KubernetesOptions) -> Result<(Client, String), StoreError> {
    let mut config = config(options).await?;
    // Retrying is the caller's business, and its clock is running.
    config.default_retry = false;
    config.connect_timeout = Some(options.connect_timeout);
    config.read_timeout = None;
    let host = config.cluster_url.authority().map(ToString::to_string).unwrap_or_default();
    let client = Client::try_from(config)
        .map_err(|error| fatal(format!("the Kubernetes client cannot be made: {error}")).with_source(error))?;
    Ok((client, host))
}

/// Takes a client, and looks whether its server answers.
pub(crate) async fn look_at(
    client: Client,
    host: String,
    namespace: &Namespace,
    options: KubernetesOptions,
) -> Result<Server, StoreError> {
    options.check()?;
    let api: Api<Lease> = Api::namespaced(client, namespace.as_str());
    let name = format!("{host}, namespace {}", namespace.as_str());
    let one = ListParams::default().limit(1);
    let limit = options.connect_timeout;
    match tokio::time::timeout(limit, api.list(&one)).await {
        Ok(Ok(_)) => Ok(Server { api, name, options }),
        Ok(Err(error)) => Err(sort(error, Stage::Connecting, &name).unexpected()),
        Err(_) => Err(timed_out(Stage::Connecting, &name, limit)),
    }
}

async fn config(options: &KubernetesOptions) -> Result<Config, StoreError> {
    let wrong = |error: &dyn std::fmt::Display| fatal(format!("no access to a Kubernetes API server: {error}"));
    let chosen = KubeConfigOptions { context: options.context.clone(), ..KubeConfigOptions::default() };
    match &options.kubeconfig {
        Some(file) => {
            let kubeconfig = Kubeconfig::read_from(file).map_err(|error| wrong(&error))?;
            Config::from_custom_kubeconfig(kubeconfig, &chosen).await.map_err(|error| wrong(&error))
        }
        None if options.context.is_some() => Config::from_kubeconfig(&chosen).await.map_err(|error| wrong(&error)),
        None => Config::infer().await.map_err(|error| wrong(&error)),
    }
}
