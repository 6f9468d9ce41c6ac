//! The manifests of `examples/kubernetes`: their fields exist, their names fit together, and the rights that they give are enough and
//! no more than are needed. There is no cluster here to apply them to.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use rendez_kubernetes::k8s_openapi::api::apps::v1::Deployment;
use rendez_kubernetes::k8s_openapi::api::core::v1::ServiceAccount;
use rendez_kubernetes::k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use rendez_kubernetes::{KubernetesOptions, LeaderLease, LeaderLeaseOptions};
use rendez_testkit::servers::{KubernetesServer, Verb};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const RBAC: &str = include_str!("../../examples/kubernetes/rbac.yaml");
const DEPLOYMENT: &str = include_str!("../../examples/kubernetes/deployment.yaml");
const DOCKERFILE: &str = include_str!("../../examples/kubernetes/Dockerfile");

/// Longer than anything here should take, even on a busy machine.
const BOUND: Duration = Duration::from_secs(60);
const LEASE_SECONDS: u64 = 6;

fn documents(text: &str) -> Vec<Value> {
    text.split("\n---\n").map(|document| serde_saphyr::from_str(document).unwrap()).collect()
}

fn find(kind: &str) -> Value {
    let mut all = documents(RBAC).into_iter().chain(documents(DEPLOYMENT));
    all.find(|document| document["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"))
}

/// What is written is what is read back: a field that does not exist, or is of another kind, is missing then.
fn check<T: DeserializeOwned + Serialize>(document: &Value) {
    let known: T = serde_json::from_value(document.clone()).unwrap();
    assert_eq!(&serde_json::to_value(known).unwrap(), document);
}

#[test]
fn every_field_is_one_of_kubernetes() {
    let kinds: Vec<String> = documents(RBAC).iter().map(|it| it["kind"].as_str().unwrap().to_owned()).collect();
    assert_eq!(kinds, ["ServiceAccount", "Role", "RoleBinding"]);
    check::<ServiceAccount>(&find("ServiceAccount"));
    check::<Role>(&find("Role"));
    check::<RoleBinding>(&find("RoleBinding"));
    check::<Deployment>(&find("Deployment"));
}

#[test]
fn names_fit_together() {
    let [account, role, binding, deployment] = ["ServiceAccount", "Role", "RoleBinding", "Deployment"].map(find);
    for document in [&account, &role, &binding, &deployment] {
        assert_eq!(document["metadata"]["namespace"], account["metadata"]["namespace"]);
    }
    assert_eq!(binding["roleRef"]["name"], role["metadata"]["name"]);
    for field in ["name", "namespace"] {
        assert_eq!(binding["subjects"][0][field], account["metadata"][field]);
    }
    let (spec, template) = (&deployment["spec"], &deployment["spec"]["template"]);
    assert_eq!(spec["selector"]["matchLabels"], template["metadata"]["labels"]);
    assert_eq!(template["spec"]["serviceAccountName"], account["metadata"]["name"]);
    let container = &template["spec"]["containers"][0];
    let image = container["image"].as_str().unwrap();
    assert!(DOCKERFILE.contains(&format!("-t {image} ")), "the Dockerfile says how {image} is built");
    // The one Lease that the role names is the one that the program is told of, by variables that it reads.
    let program = include_str!("../examples/leader-lease.rs");
    let variables = container["env"].as_array().unwrap();
    assert_eq!(variables.len(), 3);
    for variable in variables {
        let name = variable["name"].as_str().unwrap();
        assert!(program.contains(&format!("variable({name:?})")), "{name}");
        if name == "LEASE_NAME" {
            assert_eq!(json!([variable["value"]]), role["rules"][1]["resourceNames"]);
        }
    }
    let budget = LeaderLeaseOptions::new("n", "a", "b").renew_deadline().as_secs();
    assert!(template["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap() > 2 * budget);
}

/// (verbs, the names that they are about)
type Rule = (Vec<Verb>, Vec<String>);

fn rules() -> Vec<Rule> {
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    let role = find("Role");
    let read = |rule: &Value| {
        assert_eq!((&rule["apiGroups"], &rule["resources"]), (&json!(["coordination.k8s.io"]), &json!(["leases"])));
        let verbs = texts(&rule["verbs"]).iter().map(|word| Verb::parse(word).unwrap()).collect();
        (verbs, texts(&rule["resourceNames"]))
    };
    role["rules"].as_array().unwrap().iter().map(read).collect()
}

async fn join(server: &KubernetesServer, identity: &str, rules: &[Rule]) -> LeaderLease {
    let names: Vec<Vec<&str>> = rules.iter().map(|(_, names)| names.iter().map(String::as_str).collect()).collect();
    let rules: Vec<(&[Verb], &[&str])> =
        rules.iter().zip(&names).map(|((verbs, _), names)| (verbs.as_slice(), names.as_slice())).collect();
    let url = server.add_user_with(identity, &rules).unwrap();
    let mut access = KubernetesOptions::default();
    access.kubeconfig = Some(PathBuf::from(url.split_once("kubeconfig=").unwrap().1));
    let mut options = LeaderLeaseOptions::new(server.namespace(), "my-controller", identity);
    options.lease_duration = Duration::from_secs(LEASE_SECONDS);
    options.renew_interval = options.lease_duration / 5;
    options.retry_interval = options.lease_duration / 10;
    LeaderLease::connect(&access, options).await.unwrap()
}

/// Waits until something forbidden was tried.
async fn refused(election: &LeaderLease) {
    let mut states = election.states();
    let told = states.wait_for(|state| state.trouble.as_ref().is_some_and(|trouble| trouble.contains("forbidden")));
    assert!(tokio::time::timeout(BOUND, told).await.unwrap().is_ok());
}

async fn leads(election: &LeaderLease) {
    tokio::time::timeout(BOUND, election.wait_for_leadership()).await.unwrap().unwrap();
}

#[tokio::test]
async fn what_the_role_gives_is_enough() {
    let server = KubernetesServer::start().await.unwrap();
    let a = join(&server, "a", &rules()).await;
    leads(&a).await;
    let b = join(&server, "b", &rules()).await;
    let started = Instant::now();
    // Both watch, and nobody is refused anything.
    while server.requests(Verb::Watch) < 2 || b.leader().as_deref() != Some("a") {
        assert!(started.elapsed() < BOUND);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    a.stop().await.unwrap();
    leads(&b).await;
    let trouble = b.states().borrow().trouble.clone().unwrap_or_default();
    assert!(!trouble.contains("forbidden"), "{trouble}");
}

#[tokio::test]
async fn each_right_is_needed() {
    let without = |verb: Verb| -> Vec<Rule> {
        let kept = |(verbs, names): Rule| (verbs.into_iter().filter(|it| *it != verb).collect(), names);
        rules().into_iter().map(kept).collect()
    };
    let all: usize = rules().iter().map(|(verbs, _)| verbs.len()).sum();
    assert_eq!(all, 4, "each of them is taken away below");
    for verb in [Verb::Get, Verb::Create] {
        let server = KubernetesServer::start().await.unwrap();
        let election = join(&server, "a", &without(verb)).await;
        refused(&election).await;
        assert!(!election.is_leader() && server.leases().is_empty(), "{verb:?}");
    }
    // Who cannot update can make the Lease, and then loses it.
    let server = KubernetesServer::start().await.unwrap();
    let election = join(&server, "a", &without(Verb::Update)).await;
    leads(&election).await;
    refused(&election).await;
    tokio::time::timeout(BOUND, election.wait_for_loss()).await.unwrap();
    assert_eq!(server.requests(Verb::Update), 0);
    // Who cannot watch reads instead.
    let server = KubernetesServer::start().await.unwrap();
    let a = join(&server, "a", &without(Verb::Watch)).await;
    leads(&a).await;
    let b = join(&server, "b", &without(Verb::Watch)).await;
    let started = Instant::now();
    while server.requests(Verb::Get) < 5 {
        assert!(started.elapsed() < BOUND);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    a.stop().await.unwrap();
    leads(&b).await;
    assert_eq!(server.requests(Verb::Watch), 0);
}
