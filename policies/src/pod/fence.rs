//! Whether a pod's fence is the one we put up, and whether it would hold: the conditions of tier Enforced, on plain JSON.
//!
//! Owns the exact form of the init container `sidegate-fence`, which alone may have rights over the pod's network.
//! Refuses a container of that name in any other form, whatever the profile says; and, where the profile demands a fence,
//! every container that could become a user who is let through, or take the fence down. The invariant: what the spec does
//! not say is wrong once the pod is stored, for an image's own user is not visible here.

use serde_json::{json, Value};

use super::rules::{is_proxy, Wrong, REACHING};
use super::shape::{list, text, SIDECAR};
use crate::api::injection_profile::{ExemptContainer, InjectionProfileSpec, Tier};

/// The name of the init container that puts the fence up.
pub const FENCE: &str = "sidegate-fence";
/// As whom it tries to get out: nobody in the pod may be this user.
pub const STRANGER: i64 = 65_533;
/// The variable that names those who are let through.
pub const UIDS: &str = "SIDEGATE_FENCE_UIDS";
/// The program of our image.
pub const PROGRAM: &str = "/sidegate-sidecar";
/// Capabilities with which a container takes the fence down or becomes another user: every agent drops them.
pub const DROPPED: [&str; 5] = ["NET_ADMIN", "NET_RAW", "SETGID", "SETUID", "SYS_PTRACE"];
/// Words in the name of a RuntimeClass whose pods have no nftables of their own, or count users otherwise.
const SANDBOXES: [&str; 3] = ["gvisor", "runsc", "kata"];
/// Where admission mounts a token for the cluster's API, unless something is mounted there.
pub const TOKEN_FOLDER: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Fields of the container that may be there. What is none of these could change what it does.
const FIELDS: [&str; 12] = [
    "args",
    "command",
    "env",
    "image",
    "imagePullPolicy",
    "name",
    "resizePolicy",
    "resources",
    "securityContext",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "volumeMounts",
];

/// What tier Enforced of a profile demands of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Demands {
    /// Users that may leave besides the sidecar's.
    pub allowed: Vec<i64>,
    /// Containers that the profile answers for.
    pub exempt: Vec<ExemptContainer>,
}

impl Demands {
    /// Of a profile; nothing where it asks for no fence.
    pub fn of(profile: &InjectionProfileSpec) -> Option<Demands> {
        (profile.tier == Tier::Enforced).then(|| Demands {
            allowed: profile.fence.allow_uids.clone(),
            exempt: profile.agents.exempt_containers.clone(),
        })
    }

    /// Whether the profile answers for a container. A proxy that is well known does not count by itself: whoever writes
    /// the pod writes its name, its image and its command.
    pub fn exempts(&self, name: &str, image: &str) -> bool {
        let mut listed = self.exempt.iter();
        listed.any(|exempt| exempt.name == name && image.starts_with(&exempt.image_prefix))
    }

    /// Whether a pod, as submitted, may be given a fence: what is not said yet, and can be, is no fault here.
    ///
    /// # Errors
    /// What contradicts it, and what to change.
    pub fn judge(&self, spec: &Value) -> Result<(), Wrong> {
        let fenced = Fenced::of(spec);
        if let Some((why, change)) = fenced.pod {
            return Err(Wrong {
                rule: "fencePod",
                message: format!("{why}; {change}, or use a profile of tier Cooperative"),
            });
        }
        let mut bound = fenced
            .agents
            .iter()
            .filter(|agent| !self.exempts(&agent.name, &agent.image));
        bound.try_for_each(|agent| agent.judge(self))
    }
}

/// What becomes of a `sidegate-fence`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum Found {
    /// There is none.
    #[default]
    None,
    /// It is ours, and lets these through.
    Ours(Vec<i64>),
    /// It is called so.
    Other(&'static str),
}

/// What a pod's spec says about its fence: as much as any profile's demands are compared with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fenced {
    found: Found,
    sidecar: Option<i64>,
    /// Names and images of the proxies that begin before it.
    before: Vec<(String, String)>,
    /// What of the pod itself a fence does not go with, and what to change.
    pod: Option<(&'static str, &'static str)>,
    agents: Vec<Agent>,
}

/// A container that is not ours.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Agent {
    name: String,
    image: String,
    /// Who it says it runs as, by itself or by its pod.
    user: Option<i64>,
    /// Whether it says so of privileges that it could gain.
    escalates: Option<bool>,
    privileged: bool,
    adds: Vec<String>,
    /// What of [`DROPPED`] it keeps.
    keeps: Vec<&'static str>,
}

impl Fenced {
    /// Reads a pod's spec.
    pub fn of(spec: &Value) -> Fenced {
        let mut fenced = Fenced {
            pod: of_pod(spec),
            ..Fenced::default()
        };
        let by_pod = spec.pointer("/securityContext/runAsUser").and_then(Value::as_i64);
        let mut image = "";
        for container in list(spec, "initContainers") {
            if text(container, "name") == SIDECAR {
                fenced.sidecar = user(container, by_pod);
                image = text(container, "image");
            }
        }
        for (kind, container) in super::rules::containers(spec) {
            match (kind, text(container, "name")) {
                ("initContainers", SIDECAR) => {}
                ("initContainers", FENCE) => fenced.found = form(container, image),
                _ => fenced.agents.push(Agent::of(container, by_pod)),
            }
        }
        if matches!(fenced.found, Found::Ours(_)) {
            match is_first(spec) {
                true => fenced.before = leading(spec),
                false => fenced.found = Found::Other("something else begins before it"),
            }
        }
        fenced
    }

    /// Why the fence is not what it must be, or would not hold; nothing where all is right. Without demands only a
    /// container that calls itself a fence is looked at.
    pub fn wrong(&self, demands: Option<&Demands>) -> Option<String> {
        let through = match &self.found {
            Found::Other(why) => return Some(format!("{FENCE} is not the fence: {why}")),
            Found::None if demands.is_some() => {
                return Some("the profile demands a fence, and there is none".to_owned())
            }
            Found::None => return None,
            Found::Ours(through) => through,
        };
        let demands = demands?;
        let wanted = self.sidecar.into_iter().chain(demands.allowed.iter().copied());
        if !through.iter().copied().eq(wanted) {
            return Some("the fence lets through others than the sidecar and whom the profile names".to_owned());
        }
        // What connects before there is a table may still be answered behind it (test
        // `what_begins_before_the_fence_is_answered_for_by_the_profile`).
        let mut before = self.before.iter();
        if let Some((name, _)) = before.find(|(name, image)| !demands.exempts(name, image)) {
            return Some(format!("container {name} begins before the fence"));
        }
        if let Some((why, _)) = self.pod {
            return Some(why.to_owned());
        }
        let bound = self
            .agents
            .iter()
            .filter(|agent| !demands.exempts(&agent.name, &agent.image));
        bound.filter_map(|agent| agent.wrong(demands, self.sidecar)).next()
    }
}

impl Agent {
    fn of(container: &Value, by_pod: Option<i64>) -> Agent {
        let context = container.get("securityContext").unwrap_or(&Value::Null);
        let capabilities = |field: &str| {
            let all = context.get("capabilities").map(|all| list(all, field));
            let all = all.into_iter().flatten().filter_map(Value::as_str).map(plain);
            all.collect::<Vec<String>>()
        };
        let drops = capabilities("drop");
        let keeps = |capability: &&str| !drops.iter().any(|one| one == "ALL" || one == capability);
        Agent {
            name: text(container, "name").to_owned(),
            image: text(container, "image").to_owned(),
            user: user(container, by_pod),
            escalates: context.get("allowPrivilegeEscalation").and_then(Value::as_bool),
            privileged: context.get("privileged") == Some(&Value::Bool(true)),
            adds: capabilities("add")
                .into_iter()
                .filter(|one| DROPPED.contains(&one.as_str()) || REACHING.contains(&one.as_str()))
                .collect(),
            keeps: DROPPED.into_iter().filter(keeps).collect(),
        }
    }

    /// What it says that cannot be made good.
    fn judge(&self, demands: &Demands) -> Result<(), Wrong> {
        let name = &self.name;
        let wrong = |rule, message| Err(Wrong { rule, message });
        let numbered = "set its securityContext.runAsUser to a number above 0 that nobody else has";
        match self.user {
            None => {
                let why = "does not say whom it runs as, and the fence tells users apart by their numbers";
                return wrong("fenceUser", format!("container {name} {why}; {numbered}"));
            }
            Some(user) if user <= 0 => {
                return wrong("fenceUser", format!("container {name} runs as root; {numbered}"));
            }
            Some(user) if demands.allowed.contains(&user) || user == STRANGER => {
                let why = format!("runs as {user}, whom the fence knows as somebody else");
                return wrong("fenceUser", format!("container {name} {why}; {numbered}"));
            }
            Some(_) => {}
        }
        if self.privileged || self.escalates == Some(true) {
            let change = "set its securityContext.privileged and allowPrivilegeEscalation to false";
            let message = format!("container {name} may become another user, and pass the fence as that one; {change}");
            return wrong("fenceRights", message);
        }
        match self.adds.first() {
            Some(added) => wrong(
                "fenceRights",
                format!(
                    "container {name} adds {added}, with which it gets around the fence; remove it from capabilities.add, or \
                     have the platform team name the container in agents.exemptContainers of the profile"
                ),
            ),
            None => Ok(()),
        }
    }

    fn wrong(&self, demands: &Demands, sidecar: Option<i64>) -> Option<String> {
        let name = &self.name;
        if let Err(wrong) = self.judge(demands) {
            return Some(wrong.message);
        }
        if self.user == sidecar {
            return Some(format!("container {name} is the user whom the fence lets through"));
        }
        if self.escalates != Some(false) {
            return Some(format!("container {name} does not say that it gains no privileges"));
        }
        let kept = self.keeps.first()?;
        Some(format!("container {name} keeps {kept}"))
    }
}

/// Who a container says it runs as.
fn user(container: &Value, by_pod: Option<i64>) -> Option<i64> {
    let own = container.pointer("/securityContext/runAsUser").and_then(Value::as_i64);
    own.or(by_pod)
}

/// A capability as the kernel calls it, without `CAP_`.
pub fn plain(capability: &str) -> String {
    let upper = capability.to_ascii_uppercase();
    upper.strip_prefix("CAP_").unwrap_or(&upper).to_owned()
}

fn of_pod(spec: &Value) -> Option<(&'static str, &'static str)> {
    if spec.get("hostUsers") == Some(&Value::Bool(false)) {
        return Some((
            "the fence tells users apart by their numbers, which hostUsers: false makes others",
            "remove hostUsers",
        ));
    }
    let class = text(spec, "runtimeClassName").to_ascii_lowercase();
    SANDBOXES.iter().any(|word| class.contains(word)).then_some((
        "the runtime of its runtimeClassName has no nftables that tell users apart",
        "remove runtimeClassName",
    ))
}

/// Whether nothing but well-known proxies begins before the fence, and the sidecar comes next. Which of them may depends on
/// the profile.
fn is_first(spec: &Value) -> bool {
    let mut agents =
        list(spec, "initContainers").filter(|container| !is_proxy(container) || text(container, "name") == FENCE);
    let first = agents.next().map(|container| text(container, "name"));
    first == Some(FENCE) && agents.next().map(|container| text(container, "name")) == Some(SIDECAR)
}

/// Names and images of what begins before the fence.
fn leading(spec: &Value) -> Vec<(String, String)> {
    let before = list(spec, "initContainers").take_while(|container| text(container, "name") != FENCE);
    let called = |container: &Value| (text(container, "name").to_owned(), text(container, "image").to_owned());
    before.map(called).collect()
}

/// Its rights: root, who puts up the table and then becomes somebody without any.
pub fn rights() -> Value {
    json!({
        "allowPrivilegeEscalation": false,
        "capabilities": {"add": ["NET_ADMIN", "SETGID", "SETUID"], "drop": ["ALL"]},
        "privileged": false,
        "readOnlyRootFilesystem": true,
        "runAsGroup": 0,
        "runAsNonRoot": false,
        "runAsUser": 0,
        "seccompProfile": {"type": "RuntimeDefault"},
    })
}

/// Whether it is the container we make, with the sidecar's own image; whom it lets through.
fn form(container: &Value, image: &str) -> Found {
    let fields = container.as_object().map(|all| all.keys()).into_iter().flatten();
    if !fields.into_iter().all(|field| FIELDS.contains(&field.as_str())) {
        return Found::Other("it has a field that ours has not");
    }
    if text(container, "image") != image || image.is_empty() {
        return Found::Other("it has another image than the sidecar");
    }
    if container.get("command") != Some(&json!([PROGRAM])) || container.get("args") != Some(&json!(["fence"])) {
        return Found::Other("it runs another program");
    }
    if container.get("securityContext") != Some(&rights()) {
        return Found::Other("it has other rights");
    }
    if list(container, "volumeMounts").any(|mount| text(mount, "mountPath") != TOKEN_FOLDER) {
        return Found::Other("something is mounted in it");
    }
    let mut env = list(container, "env");
    let (Some(said), None) = (env.next(), env.next()) else {
        return Found::Other("its environment is another");
    };
    let users: Option<Vec<i64>> = text(said, "value").split(',').map(|word| word.parse().ok()).collect();
    match (said.as_object().map(serde_json::Map::len), text(said, "name"), users) {
        (Some(2), UIDS, Some(users)) => Found::Ours(users),
        _ => Found::Other("its environment is another"),
    }
}

#[cfg(test)]
#[path = "fence_tests.rs"]
mod tests;
