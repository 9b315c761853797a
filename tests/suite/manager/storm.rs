// SPDX-License-Identifier: Apache-2.0
//! Many tasks at once: none lost, none told twice.

use harness::manager;
use std::collections::HashMap;

const TASKS: usize = 200;
/// How many clients at once.
const CLIENTS: usize = 8;

#[test]
fn events_of_200_tasks_are_counted() {
    manager::on(|manager| {
        let it = &*manager;
        std::thread::scope(|scope| {
            for client in 0..CLIENTS {
                scope.spawn(move || {
                    for n in (client..TASKS).step_by(CLIENTS) {
                        let code = n % 250;
                        let id = format!("c{n}");
                        let words = ["sh", "-c", &format!("exit {code}")];
                        it.run(&["--rm"], &id, &words).exits(code as i32);
                    }
                });
            }
        });
        let mut counts = HashMap::<(String, String), usize>::new();
        for event in manager.json(&["events", "--no-follow"]) {
            let text = |value: &serde_json::Value| value.as_str().unwrap_or("").to_owned();
            let about = &event["event"];
            let id = text(&about["container_id"]) + &text(&about["id"]);
            *counts.entry((text(&event["topic"]), id)).or_default() += 1;
        }
        for topic in ["create", "start", "exit", "delete"] {
            let topic = format!("/tasks/{topic}");
            let of_topic: Vec<_> = counts.iter().filter(|((of, _), _)| *of == topic).collect();
            assert_eq!(of_topic.len(), TASKS, "{topic}");
            assert!(
                of_topic.iter().all(|(_, count)| **count == 1),
                "{topic}: told twice"
            );
        }
    });
}
