//! The chart for Kubernetes: what it renders to is what the API takes, and asks for no more privilege
//! than it explains.

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

/// What of Helm's language the templates use: values, and `if ne VALUE "TEXT"` to `end`, also
/// within another.
fn render(template: &str, values: &BTreeMap<String, String>) -> String {
    let value = |name: &str| values.get(name).unwrap_or_else(|| panic!("no {name}"));
    let mut lines = Vec::new();
    let mut conditions = Vec::new();
    for line in template.lines() {
        if let Some(condition) = line.strip_prefix("{{- if ne ") {
            let condition = condition.strip_suffix(" }}").expect("a condition");
            let (name, text) = condition.split_once(' ').expect("two operands");
            conditions.push(value(name) != text.trim_matches('"'));
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
    let volumes = pod["volumes"].as_vec().expect("volumes").iter();
    let paths: Vec<&str> = volumes.map(|it| text(&it["hostPath"]["path"])).collect();
    assert_eq!(paths, ["/opt/dunnage", "/etc/containerd"]);
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
    let mounts = installer["volumeMounts"].as_vec().expect("mounts").iter();
    let mounts: Vec<&str> = mounts.map(|it| text(&it["mountPath"])).collect();
    assert_eq!(mounts, ["/host/opt/dunnage", "/host/etc/containerd"]);
}

/// The installer takes the arguments that the chart gives it.
#[test]
fn the_installer_knows_its_arguments() {
    let known = fs::read_to_string(peers::workspace().join("deploy/src/arguments.rs")).unwrap();
    for mode in ["install", "uninstall"] {
        let documents = rendered("daemonset", &[("mode", mode), ("vm", "kvm")]);
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
