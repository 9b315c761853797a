// SPDX-License-Identifier: Apache-2.0
//! The chart for Kubernetes: what it renders to is what the API takes, and asks for no more privilege
//! than it explains.

use crate::schema::{self, Api};
use harness::peers;
use std::collections::BTreeMap;
use std::fs;
use yaml_rust2::{Yaml, YamlLoader};

fn read(name: &str) -> String {
    let path = peers::workspace().join("deploy/chart").join(name);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// values.yaml, as `.Values.a.b`, with `changes`.
fn values(changes: &[(&str, &str)]) -> BTreeMap<String, String> {
    let mut found = BTreeMap::from([
        (".Release.Namespace".to_owned(), "kube-system".to_owned()),
        (".Chart.AppVersion".to_owned(), crate::version::cargo()),
    ]);
    flatten(".Values", &load(&read("values.yaml"))[0], &mut found);
    for (name, value) in changes {
        let old = found.insert(format!(".Values.{name}"), (*value).to_owned());
        assert!(old.is_some(), "no value {name}");
    }
    found
}

fn flatten(prefix: &str, value: &Yaml, found: &mut BTreeMap<String, String>) {
    match value {
        Yaml::Hash(hash) => {
            for (name, value) in hash {
                let name = name.as_str().expect("a name");
                flatten(&format!("{prefix}.{name}"), value, found);
            }
        }
        value => {
            let text = value.as_str().expect("values are texts").to_owned();
            found.insert(prefix.to_owned(), text);
        }
    }
}

/// What of Helm's language the templates use: values, and `if eq VALUE "TEXT"` or `if ne` to `end`,
/// also within another.
fn render(template: &str, values: &BTreeMap<String, String>) -> String {
    let value = |name: &str| values.get(name).unwrap_or_else(|| panic!("no {name}"));
    let mut lines = Vec::new();
    let mut conditions = Vec::new();
    for line in template.lines() {
        if let Some(condition) = line.strip_prefix("{{- if ") {
            let condition = condition.strip_suffix(" }}").expect("a condition");
            let words: Vec<&str> = condition.split(' ').collect();
            conditions.push(match words[..] {
                ["eq", name, text] => value(name) == text.trim_matches('"'),
                ["ne", name, text] => value(name) != text.trim_matches('"'),
                _ => panic!("{condition}: another condition"),
            });
            continue;
        }
        if line == "{{- end }}" {
            conditions.pop().expect("a condition before its end");
            continue;
        }
        let mut rest = line;
        let mut line = String::new();
        while let Some((before, after)) = rest.split_once("{{ ") {
            let (name, after) = after.split_once(" }}").expect("an end of a value");
            line += before;
            line += value(name);
            rest = after;
        }
        if conditions.iter().all(|holds| *holds) {
            lines.push(line + rest);
        }
    }
    lines.join("\n") + "\n"
}

fn load(text: &str) -> Vec<Yaml> {
    YamlLoader::load_from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

fn rendered(name: &str, changes: &[(&str, &str)]) -> Vec<Yaml> {
    load(&render(
        &read(&format!("templates/{name}.yaml")),
        &values(changes),
    ))
}

fn text(value: &Yaml) -> &str {
    value
        .as_str()
        .unwrap_or_else(|| panic!("no text: {value:?}"))
}

/// The keys of an object.
fn keys(value: &Yaml) -> Vec<&str> {
    let hash = value
        .as_hash()
        .unwrap_or_else(|| panic!("no object: {value:?}"));
    hash.keys().map(text).collect()
}

#[test]
fn the_chart_is_of_this_version() {
    let chart = &load(&read("Chart.yaml"))[0];
    let version = crate::version::cargo();
    assert_eq!(text(&chart["version"]), version);
    assert_eq!(text(&chart["appVersion"]), version);
    let image = values(&[])[".Values.image"].clone();
    assert!(image.ends_with(&format!(":{version}")), "{image}");
}

#[test]
fn the_daemon_set_is_one_and_may_do_what_it_says() {
    let documents = rendered("daemonset", &[]);
    let [set] = &documents[..] else {
        panic!("{documents:?}");
    };
    assert_eq!(keys(set), ["apiVersion", "kind", "metadata", "spec"]);
    assert_eq!(text(&set["apiVersion"]), "apps/v1");
    assert_eq!(text(&set["kind"]), "DaemonSet");
    let template = &set["spec"]["template"];
    let selected = &set["spec"]["selector"]["matchLabels"];
    assert_eq!(selected, &template["metadata"]["labels"]);
    let pod = &template["spec"];
    assert_eq!(pod["automountServiceAccountToken"].as_bool(), Some(false));
    assert_eq!(pod["hostNetwork"], Yaml::BadValue);
    assert_eq!(text(&pod["nodeSelector"]["dunnage.io/install"]), "true");
    let [installer] = &pod["initContainers"].as_vec().expect("containers")[..] else {
        panic!("{pod:?}");
    };
    let [stay] = &pod["containers"].as_vec().expect("containers")[..] else {
        panic!("{pod:?}");
    };
    for container in [installer, stay] {
        let security = &container["securityContext"];
        assert_eq!(security["privileged"].as_bool(), Some(false));
        assert_eq!(security["readOnlyRootFilesystem"].as_bool(), Some(true));
        assert_eq!(keys(&security["capabilities"]), ["drop"]);
        assert_eq!(text(&security["capabilities"]["drop"][0]), "ALL");
    }
    assert_eq!(stay["volumeMounts"], Yaml::BadValue);
    assert_eq!(
        stay["securityContext"]["runAsNonRoot"].as_bool(),
        Some(true)
    );
}

/// Nothing of a node but what its parts are for; and what only has to be seen cannot be written.
#[test]
fn the_installer_sees_what_it_needs() {
    let own = "/etc/kubernetes/node-feature-discovery/features.d";
    for (changes, expected, read) in [
        (&[][..], &["/opt/dunnage", "/etc/containerd"][..], &[][..]),
        (
            &[("engine", "crio"), ("vm", "kvm")],
            &["/opt/dunnage", "/etc/crio"],
            &[],
        ),
        (
            &[("features", own)],
            &["/opt/dunnage", "/etc/containerd", own],
            &[],
        ),
        (
            &[("vm", "auto")],
            &["/opt/dunnage", "/etc/containerd", "/dev", "/usr/bin"],
            &["/host/dev", "/host/usr/bin"],
        ),
    ] {
        let documents = rendered("daemonset", changes);
        let pod = &documents[0]["spec"]["template"]["spec"];
        let list = |value: &Yaml| value.as_vec().expect("a list").clone();
        let volumes = list(&pod["volumes"]);
        let paths: Vec<&str> = volumes
            .iter()
            .map(|it| text(&it["hostPath"]["path"]))
            .collect();
        assert_eq!(paths, expected);
        let mounts = list(&pod["initContainers"][0]["volumeMounts"]);
        let places: Vec<&str> = mounts.iter().map(|it| text(&it["mountPath"])).collect();
        let prefixed: Vec<String> = paths.iter().map(|path| format!("/host{path}")).collect();
        assert_eq!(places, prefixed);
        let names = |list: &[Yaml]| {
            list.iter()
                .map(|it| text(&it["name"]).to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(names(&volumes), names(&mounts));
        let cannot = mounts
            .iter()
            .filter(|it| it["readOnly"].as_bool() == Some(true));
        let cannot: Vec<&str> = cannot.map(|it| text(&it["mountPath"])).collect();
        assert_eq!(cannot, read);
    }
}

/// Whatever is asked of the chart, the API has all the fields, and they have its types.
#[test]
fn the_api_takes_what_the_chart_renders_to() {
    let features = (
        "features",
        "/etc/kubernetes/node-feature-discovery/features.d",
    );
    for release in schema::RELEASES {
        let api = Api::of(release);
        for changes in [
            &[][..],
            &[("mode", "uninstall")],
            &[("vm", "kvm"), ("engine", "crio")],
            &[("vm", "auto"), features],
            &[("vm", "tcg"), features],
        ] {
            let mut objects = rendered("daemonset", changes);
            objects.extend(rendered("runtimeclasses", changes));
            for object in objects.iter().filter(|it| !it.is_null()) {
                let kind = match text(&object["kind"]) {
                    "DaemonSet" => "io.k8s.api.apps.v1.DaemonSet",
                    "RuntimeClass" => "io.k8s.api.node.v1.RuntimeClass",
                    other => panic!("{other}"),
                };
                let wrong = api.complaints(kind, object);
                assert!(wrong.is_empty(), "{release}, {changes:?}: {wrong:?}");
            }
        }
    }
}

#[test]
fn what_the_api_does_not_take_is_named() {
    let api = Api::of(schema::RELEASES[0]);
    let kind = "io.k8s.api.apps.v1.DaemonSet";
    let template = render(&read("templates/daemonset.yaml"), &values(&[]));
    for (old, new, why) in [
        ("hostPID: true", "hostPid: true", "no field hostPid"),
        (
            "hostPID: true",
            "hostPID: \"yes\"",
            ".hostPID: \"yes\" is not of type",
        ),
        ("kind: DaemonSet", "kind: DaemonSets", ".kind: "),
        (
            "        - name: stay\n",
            "        - names: stay\n",
            "no name",
        ),
        (
            "            limits:\n              memory: 16Mi",
            "            limits:\n              memory: [16Mi]",
            "none of what",
        ),
    ] {
        let broken = template.replace(old, new);
        assert_ne!(broken, template, "{old}");
        let wrong = api.complaints(kind, &load(&broken)[0]);
        assert!(wrong.iter().any(|it| it.contains(why)), "{new}: {wrong:?}");
    }
}

/// The installer takes the arguments that the chart gives it.
#[test]
fn the_installer_knows_its_arguments() {
    let known = fs::read_to_string(peers::workspace().join("deploy/src/arguments.rs")).unwrap();
    for (mode, engine) in [("install", "containerd"), ("uninstall", "crio")] {
        let changes = [
            ("mode", mode),
            ("vm", "kvm"),
            ("engine", engine),
            ("features", "/f"),
        ];
        let documents = rendered("daemonset", &changes);
        let pod = &documents[0]["spec"]["template"]["spec"];
        let args = pod["initContainers"][0]["args"]
            .as_vec()
            .expect("arguments");
        let args: Vec<&str> = args.iter().map(text).collect();
        assert_eq!(args[0], mode);
        assert!(args.contains(&"--vm=kvm"), "{args:?}");
        for flag in &args[1..] {
            let flag = flag.split('=').next().expect("a flag");
            assert!(known.contains(&format!("\"{flag}\" =>")), "{flag}");
        }
    }
}

#[test]
fn runtime_classes_have_the_handlers_and_what_a_vm_takes() {
    let names = |classes: &[Yaml]| -> Vec<String> {
        classes
            .iter()
            .map(|it| text(&it["handler"]).to_owned())
            .collect()
    };
    let classes = rendered("runtimeclasses", &[]);
    assert_eq!(names(&classes), ["dunnage"]);
    let classes = rendered("runtimeclasses", &[("vm", "kvm")]);
    assert_eq!(names(&classes), ["dunnage", "dunnage-vm"]);
    // Nobody begins what is to go.
    let none = rendered("runtimeclasses", &[("vm", "kvm"), ("mode", "uninstall")]);
    assert!(none.iter().all(Yaml::is_null), "{none:?}");
    for class in &classes {
        assert_eq!(text(&class["apiVersion"]), "node.k8s.io/v1");
        assert_eq!(text(&class["kind"]), "RuntimeClass");
        let selector = &class["scheduling"]["nodeSelector"];
        assert_eq!(text(&selector["dunnage.io/install"]), "true");
    }
    let where_to = |vm: &str| {
        let classes = rendered("runtimeclasses", &[("vm", vm), ("features", "/f")]);
        let selector = &classes[1]["scheduling"]["nodeSelector"];
        text(&selector["dunnage.io/vm"]).to_owned()
    };
    assert_eq!(["kvm", "tcg", "auto"].map(where_to), ["kvm", "tcg", "kvm"]);
    // As the shim itself has it.
    let fixed = &classes[1]["overhead"]["podFixed"];
    let path = peers::workspace().join("shim-vm/etc/shim-vm.toml");
    let settings = fs::read_to_string(path).expect("shim-vm.toml");
    let memory = text(&fixed["memory"]).strip_suffix("Mi").expect("MiB");
    assert!(settings.contains(&format!("#overhead_memory = {memory}\n")));
    let cpu: u32 = text(&fixed["cpu"])
        .strip_suffix('m')
        .expect("m")
        .parse()
        .unwrap();
    assert!(settings.contains(&format!("#overhead_cpu = {}\n", cpu / 10)));
}
