//! Every key wrong once, and who counts before whom.

use std::time::Duration;

use rendez_core::placement::{LoadFactor, Policy, VirtualNodes};
use rendez_core::{Declared, DynamicWorkloads};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn named() -> Config {
    Config::new().cluster("c").node_id("n")
}

fn from_toml(text: &str) -> ResolvedConfig {
    named().merge_toml(text).unwrap().resolve().unwrap()
}

fn problems(result: Result<Config, ConfigError>) -> Vec<ConfigProblem> {
    result.and_then(|config| config.validate()).unwrap_err().problems
}

/// A value that every key refuses, what is shown of it, and a part of the hint.
const WRONG: &[(&str, &str, &str, &str)] = &[
    ("cluster", r#""""#, r#""""#, "use 1 to 200 bytes"),
    ("node_id", r#""a\nb""#, r#""a\nb""#, "use printable UTF-8"),
    ("weight", "0", "0", "use 1 or more"),
    ("zone", "7", "7", "write it in quotes"),
    ("labels", r#"{ disk = "a\u0000" }"#, r#""a\0""#, "use printable UTF-8"),
    ("capacity", "0", "0", r#"or "none" for no limit"#),
    ("workloads", "{ inbox = 0 }", "0", "leave the workload out"),
    ("dynamic_workloads", r#""some""#, r#""some""#, r#"use "none", "all", or a list"#),
    ("store", r#""password@host""#, "(not shown)", "write SCHEME:REST"),
    ("store_file", r#""""#, r#""""#, "write the path"),
    ("store_options", "{ password = 17 }", "(not shown)", "write it in quotes"),
    ("connect_timeout", r#""0s""#, r#""0s""#, "use 1ms or more"),
    ("session_ttl", "10", "10", r#"write "10s" or "10ms""#),
    ("heartbeat_interval", r#""2""#, r#""2""#, "with its unit"),
    ("heartbeat_jitter_permille", "1001", "1001", "use 1000 or less"),
    ("operation_timeout", r#""-1s""#, r#""-1s""#, "use 0s or more"),
    ("heartbeat_attempts", "0", "0", "use 1 or more"),
    ("backoff_min", "true", "true", "with its unit"),
    ("stop_budget", r#""99999h""#, r#""99999h""#, "use 8760h or less"),
    ("pause_allowance", r#""1 parsec""#, r#""1 parsec""#, "with its unit"),
    ("clock_rate_error_ppm", "-5", "-5", "write digits only"),
    ("shedding", r#""yes""#, r#""yes""#, "write true or false"),
    ("cooldown", "1979-05-27", "1979-05-27", "with its unit"),
    ("runtime_min", "[]", "[]", "with its unit"),
    ("shed_budget", "0", "0", "use 1 or more"),
    ("slots_min", "1.5", "1.5", "write digits only"),
    ("settling", "nan", "nan", "with its unit"),
    ("acquire_limit", "0", "0", "use 1 or more"),
    ("start_delay", "{}", "{}", "with its unit"),
    ("candidate_grace", r#""1us""#, r#""1us""#, "use 1ms or more"),
    ("weight_hysteresis_permille", "2_000", "2000", "use 1000 or less"),
    ("restart_backoff_min", r#""0ms""#, r#""0ms""#, "use 1ms or more"),
    ("restart_backoff_max", r#""""#, r#""""#, "with its unit"),
    ("restart_reset_after", r#""1y""#, r#""1y""#, "with its unit"),
    ("give_up_after", "0", "0", r#""never""#),
    ("refuse_for", r#""never""#, r#""never""#, "with its unit"),
    ("abort_grace", "0.5", "0.5", "with its unit"),
    ("offer_ttl", r#""0s""#, r#""0s""#, "use 1ms or more"),
    ("drain_timeout", "30", "30", r#""30s""#),
    ("give_up_if_in_use", "1", "1", "write true or false"),
    ("policy", r#""rendevous""#, r#""rendevous""#, r#"did you mean "rendezvous"?"#),
    ("load_factor", "0.9", "0.9", "use 1.0 to 100.0"),
    ("session_ttl_max", r#""25h""#, r#""25h""#, "use 24h or less"),
    ("move_budget", "4294967296", "4294967296", "use 4294967295 or less"),
    ("cold_start_hold", r#""soon""#, r#""soon""#, "with its unit"),
];

#[test]
fn a_file_with_every_key_wrong_is_refused_with_key_line_value_and_what_would_do() {
    assert_eq!(WRONG.iter().map(|(key, ..)| *key).collect::<Vec<_>>(), KEYS, "every key, in order");
    let text: String = WRONG.iter().map(|(key, value, ..)| format!("{key} = {value}\n")).collect();
    let found = problems(Config::from_toml(&text));
    assert_eq!(found.len(), WRONG.len(), "{found:#?}");
    for (at, (problem, (key, _, shown, hint))) in found.iter().zip(WRONG).enumerate() {
        assert_eq!(problem.key.split('.').next(), Some(*key));
        assert_eq!(problem.value.as_deref(), Some(*shown), "{problem}");
        assert_eq!(problem.place, Place::File { path: None, line: at + 1 });
        assert!(problem.hint.contains(hint), "{problem}");
        assert!(!problem.to_string().contains("password@host"), "{problem}");
    }
}

#[test]
fn a_variable_with_a_wrong_value_is_refused_in_the_same_way() {
    for (key, value, _, hint) in WRONG {
        let plain = value.trim_matches('"').replace("\\n", "\n");
        let variable = format!("{ENVIRONMENT_PREFIX}{}", key.to_uppercase());
        if matches!(*key, "zone") {
            continue; // Every text is a zone.
        }
        let found = problems(Config::new().merge_variables([(variable.clone(), plain)]));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].place, Place::Environment { variable });
        // Numbers without a unit are texts here.
        let unit = hint.contains("10s") || hint.contains("30s");
        assert!(found[0].hint.contains(if unit { "with its unit" } else { hint }), "{}", found[0]);
    }
}

#[test]
fn unknown_keys_are_refused_with_the_nearest_known_one() {
    for (key, hint) in [
        ("sesion_ttl", "did you mean session_ttl?"),
        ("Heartbeat-Interval", "did you mean heartbeat_interval?"),
        ("LeaseTTL", "here it is called session_ttl"),
        ("max_consumers_per_node", "here it is called capacity"),
        ("frobnicate", "see docs/configuration.md"),
    ] {
        let found = problems(Config::from_toml(&format!("cluster = \"c\"\n{key} = 1")));
        assert_eq!((found.len(), &*found[0].key), (1, key));
        assert!(found[0].hint.contains(hint), "{}", found[0]);
        assert!(found[0].to_string().contains("line 2"));
    }
    let found = problems(Config::from_toml("[workloads]\ninbox = { unit = 4 }\nfeed = { cap = 1 }"));
    assert_eq!(found[0].key, "workloads.inbox.unit");
    assert!(found[0].hint.contains("did you mean units?"), "{}", found[0]);
    assert!(found[1].wrong.contains("missing") && found[1].place == Place::File { path: None, line: 3 });
    for (variable, hint) in [
        ("RENDEZ_CONFIG_SESION_TTL", "did you mean session_ttl?"),
        ("RENDEZ_CONFIG_session_ttl", "write RENDEZ_CONFIG_SESSION_TTL"),
        ("RENDEZ_CONFIG_", "see docs/configuration.md"),
    ] {
        let found = problems(Config::new().merge_variables([(variable, "1s")]));
        assert!(found[0].hint.contains(hint), "{}", found[0]);
    }
}

#[test]
fn what_is_no_toml_is_refused_with_its_line() {
    for (text, line) in [
        ("cluster = \"c\"\nzone = ", 2),
        ("[workloads]\ninbox = 1\ninbox = 2\n", 3),
        ("weight = 1\nweight = 1", 2),
        ("\0", 1),
    ] {
        let found = problems(Config::from_toml(text));
        assert_eq!(found[0].place, Place::File { path: None, line }, "{text:?}: {}", found[0]);
        assert!(found[0].wrong.contains("no TOML"));
    }
}

#[test]
fn code_counts_before_environment_before_file_before_default_in_any_order() {
    let file = "weight = 2\nshed_budget = 2\nmove_budget = 2\nlabels = { a = '1' }";
    let variables = [("RENDEZ_CONFIG_WEIGHT", "3"), ("RENDEZ_CONFIG_SHED_BUDGET", "3"), ("HOME", "x")];
    let one = named().weight(4).merge_toml(file).unwrap().merge_variables(variables).unwrap();
    let other = named().merge_variables(variables).unwrap().merge_toml(file).unwrap().weight(4);
    for config in [one, other] {
        let resolved = config.resolve().unwrap();
        assert_eq!(resolved.info.weight, 4);
        assert_eq!(resolved.engine.stabilizers.shed_budget, 3);
        assert_eq!(resolved.info.settings.move_budget, 2);
        assert_eq!(resolved.engine.stabilizers.acquire_limit, 512);
        assert_eq!(resolved.info.labels["a"], "1");
    }
    let later = named().merge_toml(file).unwrap().merge_toml("weight = 9\nlabels = { b = '2' }").unwrap();
    let resolved = later.label("c", "3").resolve().unwrap();
    assert_eq!(resolved.info.weight, 9);
    assert_eq!(resolved.info.labels.len(), 1, "tables are replaced whole");
    let unlimited = named().merge_toml("capacity = 5").unwrap();
    let unlimited = unlimited.merge_variables([("RENDEZ_CONFIG_CAPACITY", "none")]).unwrap();
    assert_eq!(unlimited.resolve().unwrap().info.capacity, None);
}

#[test]
fn a_wrong_value_is_told_even_where_a_stronger_one_would_count() {
    assert!(named().weight(4).merge_toml("weight = 0").is_err());
}

#[test]
fn durations_are_read_as_people_write_them() {
    for (text, millis) in [
        ("10s", 10_000),
        ("1m 500ms", 60_500),
        ("1500ms", 1500),
        ("2h", 7_200_000),
        ("1 minute, 2 seconds", 62_000),
        ("PT5S", 5000),
        (" 1.5s ", 1500),
    ] {
        let resolved = from_toml(&format!("cooldown = {text:?}"));
        assert_eq!(resolved.engine.stabilizers.cooldown, Duration::from_millis(millis), "{text}");
    }
}

#[test]
fn what_is_not_set_scales_with_the_session_ttl() {
    let resolved = from_toml("session_ttl = '3s'\nstop_budget = '1s'");
    let mut timing = Timing::for_ttl(SECOND * 3);
    timing.stop_budget = SECOND;
    assert_eq!(resolved.engine, EngineConfig::for_timing(timing));
    assert_eq!(resolved.info.settings, ClusterSettings::new(SECOND * 3));
    assert_eq!(named().resolve().unwrap().engine, EngineConfig::for_ttl(SECOND * 10));
}

#[test]
fn values_that_can_each_be_but_not_together_are_refused() {
    for (text, key, hint) in [
        ("stop_budget = '9s'", "session_ttl", "use a session_ttl of 14.029s or more"),
        ("heartbeat_jitter_permille = 600", "heartbeat_jitter_permille", "use 500 or less"),
        ("heartbeat_attempts = 101", "heartbeat_attempts", "use 1 to 100"),
        ("clock_rate_error_ppm = 999999", "clock_rate_error_ppm", "use 100000 or less"),
        ("session_ttl_max = '5s'", "session_ttl", "or a session_ttl_max of 10s or more"),
        ("restart_backoff_min = '1m'", "restart_backoff_min", "use 30s or less"),
        ("capacity = 3\nslots_min = 4", "slots_min", "use 3 or less"),
        ("store = 'memory:'\nstore_file = '/x'", "store_file", "set one of them"),
        ("store_file = '/nowhere/at/all'", "store_file", "write the path of a file"),
        ("drain_timeout = '8760h'\nsession_ttl = '24h'\nstop_budget = '8760h'", "session_ttl", "use a session_ttl"),
    ] {
        let found = problems(named().merge_toml(text));
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].key, key);
        assert!(found[0].hint.contains(hint), "{}", found[0]);
    }
    let found = problems(Ok(Config::new().node_id("n")));
    assert_eq!((&*found[0].key, &found[0].place), ("cluster", &Place::Default));
}

#[test]
fn tables_and_lists_are_read_from_files_and_variables_alike() {
    let workloads = r#"{ inbox = 4, "a/b, c" = { units = 2, cap = 1 }, any = { units = 1, cap = "none" }, boss = { units = 1, policy = "sticky", priority = 7 } }"#;
    let file =
        format!("workloads = {workloads}\ndynamic_workloads = ['x', 'y z']\npolicy = 'rendezvous'\nload_factor = 1.25");
    let variables = [
        ("RENDEZ_CONFIG_WORKLOADS", workloads),
        ("RENDEZ_CONFIG_DYNAMIC_WORKLOADS", "['x', 'y z']"),
        ("RENDEZ_CONFIG_POLICY", "rendezvous"),
        ("RENDEZ_CONFIG_LOAD_FACTOR", "1.25"),
    ];
    let by_file = from_toml(&file);
    assert_eq!(by_file, named().merge_variables(variables).unwrap().resolve().unwrap());
    let name = |name: &str| name.parse().unwrap();
    assert_eq!(by_file.info.workloads[&name("a/b, c")], Declared::new(2).with_cap(1));
    assert_eq!(by_file.info.workloads[&name("any")], Declared::new(1));
    let boss = Declared::new(1).with_policy(Policy::Sticky).with_priority(7);
    assert_eq!(by_file.info.workloads[&name("boss")], boss);
    assert!(format!("{:?}", by_file.builder()).contains(&format!("{boss:?}")), "the node declares all of it");
    assert_eq!(by_file.info.dynamic, DynamicWorkloads::Only([name("x"), name("y z")].into()));
    assert_eq!(by_file.info.settings.policy, Policy::Rendezvous);
    assert_eq!(by_file.info.settings.load_factor, LoadFactor::from_permille(1250).unwrap());
    for (text, virtual_nodes) in [("ring", 8), ("ring:1", 1), ("ring:1024", 1024)] {
        let policy = from_toml(&format!("policy = '{text}'")).info.settings.policy;
        assert_eq!(policy, Policy::Ring(VirtualNodes::new(virtual_nodes).unwrap()), "{text}");
    }
    for (text, hint) in [("rings", "did you mean \"ring\"?"), ("ring:", "ring:64"), ("ring:1025", "ring:64")] {
        let found = problems(Config::from_toml(&format!("policy = '{text}'")));
        assert!(found[0].hint.contains(hint), "{text}: {}", found[0]);
    }
    for (text, permille) in [("1", 1000), ("1.0", 1000), ("1.125", 1125), ("100.0", 100_000)] {
        let factor = from_toml(&format!("load_factor = {text}")).info.settings.load_factor;
        assert_eq!(factor.permille(), permille, "{text}");
    }
    for text in ["1.0001", "1e2", "-1.0", "100.001", "inf"] {
        assert!(Config::from_toml(&format!("load_factor = {text}")).is_err(), "{text}");
    }
}

#[test]
fn hostile_names_are_refused_or_inert() {
    for name in ["a/b:c{d}*?[e]", "..", " ", "\u{1f980}", "'; DROP TABLE--"] {
        let config = Config::new().cluster(name).node_id(name).zone(name).workload(name, 1).label(name, name);
        assert_eq!(config.resolve().unwrap().cluster.as_str(), name);
    }
    for name in ["", "a\0", "a\n", "\u{85}", &*"x".repeat(201)] {
        for config in [named().cluster(name), named().node_id(name), named().zone(name), named().workload(name, 1)] {
            let found = problems(Ok(config));
            assert_eq!((found.len(), &found[0].place), (1, &Place::Code));
            assert!(!found[0].to_string().chars().any(char::is_control), "{}", found[0]);
        }
        let text = format!("[workloads]\n{name:?} = 1").replace("\\u{85}", "\\u0085").replace("\\0", "\\u0000");
        let found = problems(Config::from_toml(&text));
        assert!(!found[0].to_string().chars().any(char::is_control), "{}", found[0]);
        assert!(found[0].hint.contains("UTF-8"), "{}", found[0]);
    }
    let found = problems(named().merge_variables([("RENDEZ_CONFIG_A\n", "x")]));
    assert!(!found[0].to_string().contains('\n'));
    assert_eq!(problems(Ok(named().label("a", "\u{7}"))).len(), 1);
    assert!(found[0].to_string().len() < 200);
    let found = problems(Config::from_toml(&format!("session_ttl = '{}'", "9".repeat(10_000))));
    assert!(found[0].to_string().chars().count() < 300, "long values are shortened");
}

#[cfg(unix)]
#[test]
fn a_variable_that_is_not_utf8_is_refused() {
    use std::os::unix::ffi::OsStringExt;
    let value = std::ffi::OsString::from_vec(vec![0xFF]);
    let found = problems(Config::new().merge_variables([("RENDEZ_CONFIG_ZONE", value)]));
    assert!(found[0].wrong.contains("UTF-8"));
}

#[test]
fn code_may_correct_itself_but_not_declare_twice() {
    assert!(named().weight(0).weight(1).validate().is_ok());
    for config in [
        named().workload("w", 1).workload("w", Declared::new(2).with_cap(1)),
        named().workload("w", 0),
        named().workload("w", rendez_core::UNITS_MAX + 1),
        named().workload("w", Declared::new(1).with_cap(0)),
        named().session_ttl(Duration::MAX),
        named().stop_budget(Duration::MAX),
        named().store("nothing"),
        named().capacity(Some(0)),
    ] {
        let found = problems(Ok(config));
        assert_eq!((found.len(), &found[0].place), (1, &Place::Code), "{found:?}");
    }
}

#[test]
fn secrets_are_not_shown() {
    let config = named().store("redis://u:hunter2@h").store_option("password", "hunter2");
    let resolved = config.resolve().unwrap();
    assert_eq!(resolved.store.as_deref(), Some("redis://u:hunter2@h"));
    assert!(!format!("{config:?} {resolved:?}").contains("hunter2"));
    let error = named().store("hunter2").resolve().unwrap_err();
    assert!(!format!("{error} {error:?}").contains("hunter2"));
}

#[test]
fn the_address_of_the_store_may_stand_in_a_file_of_its_own() {
    let path = std::env::temp_dir().join(format!("rendez-config-{}-{:08x}", std::process::id(), Config::new().suffix));
    std::fs::write(&path, " redis://h\n").unwrap();
    let resolved = named().store_file(&path).resolve();
    std::fs::write(&path, "hunter2").unwrap();
    let refused = named().store_file(&path).resolve();
    let file = Config::from_file(&path);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(resolved.unwrap().store.as_deref(), Some("redis://h"));
    assert!(!refused.unwrap_err().to_string().contains("hunter2"));
    let found = problems(file);
    assert_eq!(found[0].place, Place::File { path: Some(path.clone()), line: 1 });
    let found = problems(Config::from_file(&path));
    assert!(found[0].to_string().contains("cannot be read"), "{}", found[0]);
}

#[test]
fn the_default_node_id_is_the_same_for_one_configuration_and_another_for_each_process() {
    let (one, other) = (Config::new().cluster("c"), Config::new().cluster("c"));
    let node = |config: &Config| config.default_node_id().unwrap();
    assert_eq!(node(&one), node(&one.clone()));
    if std::env::var_os("POD_NAME").is_none() {
        assert_ne!(node(&one), node(&other));
    }
}

#[test]
fn a_configuration_makes_a_builder() {
    let config = named()
        .zone("z")
        .capacity(Some(3))
        .label("a", "b")
        .workload("w", 1)
        .workload("v", Declared::new(2).with_cap(1));
    let builder = config.builder().unwrap();
    assert!(format!("{builder:?}").contains("\"w\""));
    assert!(Config::new().builder().is_err());
}

#[test]
fn the_documentation_names_every_key_and_nothing_else() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let text = std::fs::read_to_string(path).unwrap();
    let table = text.split("## All keys").nth(1).unwrap().split("\n## ").next().unwrap();
    let named = table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    assert_eq!(named.collect::<Vec<_>>(), KEYS);
    for (elsewhere, _) in [("HeartbeatTTL", 0), ("WorkloadIndexKey", 0)] {
        assert!(text.contains(elsewhere));
    }
}
