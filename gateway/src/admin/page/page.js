// The page: asks the admin API, and shows what it says. Whatever comes from the gateway becomes text, never markup; the
// charts, which it draws as SVG, are parsed as XML and copied without scripts.

const POLL_MS = 2000;
const CHART_MS = 4000;
const ACTIVITY_MAX = 60;
const $ = (id) => document.getElementById(id);

const known = { status: null, at: 0, before: null, whys: new Map(), shadows: new Map(), audit: [], notices: [] };
let span = "recent";

// ---- asking -------------------------------------------------------------------------------------------------------

const TOKEN = "lockgate-token";
let entering = null;

/** Calls the API. A refusal is thrown, as a person reads it. */
async function ask(path, { method = "GET", body, signal, last } = {}) {
  const headers = {};
  const token = sessionStorage.getItem(TOKEN);
  if (token) headers.authorization = `Bearer ${token}`;
  if (last) headers["last-event-id"] = last;
  if (body !== undefined) headers["content-type"] = "application/json";
  const answer = await fetch(path, {
    method, headers, signal, cache: "no-store", body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (answer.status === 401) {
    // Another call may have asked for it meanwhile.
    if (sessionStorage.getItem(TOKEN) === token) await enter(token);
    return ask(path, { method, body, signal, last });
  }
  if (!answer.ok) {
    const { error, hint } = await answer.json().catch(() => ({ error: `the gateway answered ${answer.status}` }));
    throw new Error(hint ? `${error}\n${hint}` : error);
  }
  return answer;
}

const json = async (path) => (await ask(path)).json();
const rolloutPath = (name) => `/api/v1/rollouts/${encodeURIComponent(name)}`;

/** Asks for the token, once for all calls that wait for it. */
function enter(refused) {
  entering ??= new Promise((resolve) => {
    const dialog = $("enter");
    const form = dialog.querySelector("form");
    // It opens every door: without it there is nothing to see.
    dialog.oncancel = (event) => event.preventDefault();
    form.onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(TOKEN, form.token.value.trim());
      form.reset();
      dialog.close();
      entering = null;
      resolve();
    };
    $("enter-problem").textContent = refused ? "That is not the gateway’s token." : "";
    sessionStorage.removeItem(TOKEN);
    dialog.showModal();
  });
  return entering;
}

// ---- building -----------------------------------------------------------------------------------------------------

/** Makes an element: `el("p.soft", { id: "x" }, "text", child)`. Nothing, false and null are left out. */
function el(what, ...rest) {
  const [tag, ...classes] = what.split(".");
  const node = document.createElement(tag || "div");
  if (classes.length) node.className = classes.join(" ");
  for (const part of rest.flat(3)) {
    if (part === null || part === undefined || part === false) continue;
    if (part instanceof Node) node.append(part);
    else if (typeof part === "object") for (const [name, value] of Object.entries(part)) set(node, name, value);
    else node.append(String(part));
  }
  return node;
}

function set(node, name, value) {
  if (value === null || value === undefined || value === false) return;
  node.setAttribute(name, value === true ? "" : value);
}

/** Makes `now` look like `next`, and keeps what is the same: focus, scroll position, what is open. */
function morph(now, next) {
  for (const { name } of [...now.attributes]) {
    if (!next.hasAttribute(name) && name !== "open" && name !== "style") now.removeAttribute(name);
  }
  for (const { name, value } of next.attributes) if (now.getAttribute(name) !== value) now.setAttribute(name, value);
  if (now.dataset.share !== undefined) now.style.setProperty("--share", now.dataset.share);
  if (now.dataset.keep !== undefined) return;
  children(now, [...next.childNodes]);
}

function children(parent, wanted) {
  const keyed = new Map([...parent.children].filter((child) => child.dataset.key).map((child) => [child.dataset.key, child]));
  let place = parent.firstChild;
  for (const next of wanted) {
    const key = next.dataset?.key;
    const found = key ? keyed.get(key) : place;
    const same = found && found.nodeName === next.nodeName && (found.dataset?.key ?? null) === (key ?? null);
    if (!same) {
      parent.insertBefore(next, place);
      shares(next);
    } else {
      if (found !== place) parent.insertBefore(found, place);
      else place = place.nextSibling;
      if (found.nodeType === Node.TEXT_NODE) {
        if (found.data !== next.data) found.data = next.data;
      } else morph(found, next);
    }
  }
  while (place) {
    const gone = place;
    place = place.nextSibling;
    gone.remove();
  }
}

function shares(node) {
  if (node.nodeType !== Node.ELEMENT_NODE) return;
  for (const one of [node, ...node.querySelectorAll("[data-share]")]) {
    if (one.dataset.share !== undefined) one.style.setProperty("--share", one.dataset.share);
  }
}

// ---- words --------------------------------------------------------------------------------------------------------

const count = (number) => number.toLocaleString("en", { maximumFractionDigits: 0 });
const plural = (number, what) => `${count(number)} ${what}${number === 1 ? "" : "s"}`;
const rate = (number) => (number >= 10 || number === 0 ? count(number) : number.toFixed(1));

function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB"];
  let unit = 0;
  for (; bytes >= 1024 && unit < units.length - 1; unit += 1) bytes /= 1024;
  return `${bytes >= 10 || unit === 0 ? Math.round(bytes) : bytes.toFixed(1)} ${units[unit]}`;
}

function brief(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 0.001) return `${Math.max(1, Math.round(seconds * 1e6))} µs`;
  if (seconds < 1) return `${(seconds * 1e3).toFixed(seconds < 0.01 ? 1 : 0)} ms`;
  return `${seconds.toFixed(1)} s`;
}

function long(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const first = parts.findIndex(([unit]) => whole >= unit);
  if (first < 0) return "0 s";
  const [[big, bigName], small] = [parts[first], parts[first + 1]];
  const rest = small ? Math.floor((whole % big) / small[0]) : 0;
  return `${Math.floor(whole / big)} ${bigName}${rest ? ` ${rest} ${small[1]}` : ""}`;
}

function clock(time) {
  const when = new Date(time);
  const today = when.toDateString() === new Date().toDateString();
  return today
    ? when.toLocaleTimeString("en-GB")
    : when.toLocaleDateString("en-GB", { day: "numeric", month: "short" });
}

const ratio = (weight) => Number.parseFloat(weight) / 100;

// ---- showing ------------------------------------------------------------------------------------------------------

function show() {
  const { status } = known;
  if (!status) return;
  $("facts").textContent = `Generation ${status.generation}, up ${long(status.uptime_seconds)}`;
  children($("banners"), banners(status));
  children($("rollouts"), status.rollouts.length
    ? status.rollouts.map(rollout)
    : [el("p.empty", "The configuration has no rollouts. Give a filter or an upstream a canary, and it appears here.")]);
  children($("filters"), [filters(status)]);
  children($("gateway"), gateway(status));
  children($("activity"), activity());
}

function banners(status) {
  const { last_reload: reload } = status;
  return [
    !status.deciding && el("p.banner", "Another process decides: this one only finishes its requests. Load the page again to reach the new one."),
    reload.outcome === "refused" && el(".banner.bad", { role: "alert" },
      el("strong", "The configuration on disk is refused"), `; what served before goes on serving. ${reload.actor}, ${clock(reload.time)}`,
      el("pre", { tabindex: "0" }, reload.problems ?? "")),
    status.state_trouble && el("p.banner", status.state_trouble),
    ...status.approvals.filter((waiting) => !waiting.rollout).map((waiting) =>
      el("p.banner", { "data-key": `approve-${waiting.kind}-${waiting.name}` }, el("strong", `${waiting.kind} ${waiting.name}`),
        ` waits for approval: version ${waiting.version} may ${waiting.gains.join(", ")}. lockgate approve ${waiting.name} lets it in.`)),
    ...status.filters.filter((filter) => filter.trouble).map((filter) =>
      el("p.banner.bad", { "data-key": `trouble-${filter.name}` }, el("strong", filter.name), `: ${filter.trouble}`)),
  ].filter(Boolean);
}

const STATES = {
  ramping: "canary", shadowing: "canary", promoted: "good", "rolled-back": "bad", abandoned: "bad", paused: "warn", stalled: "warn", waiting: "warn",
};
const OVER = ["promoted", "rolled-back", "abandoned", "waiting"];

function rollout(view) {
  const why = known.whys.get(view.name) ?? {};
  const weight = ratio(view.weight);
  return el("article.rollout", { "data-key": view.name, "data-rollout": view.name, "aria-label": `Rollout ${view.name}` },
    el(".head",
      el("h3", view.name),
      el("span.soft", view.subject),
      el(`span.badge.${STATES[view.state] ?? ""}`, { "data-part": "state" }, view.state.replace("-", " ")),
      view.differs_from_file && el("span.badge.warn", { title: `The file says ${view.weight_in_file}. lockgate rollout export prints what to commit.` }, "differs from the file"),
      el(".actions", buttons(view).map(([action, name, style]) =>
        el(`button${style}`, { type: "button", "data-action": action, "data-key": action, "aria-label": `${name}: ${view.name}` }, name)))),
    el(".tracks",
      el("div", el(".who.stable", "Stable"), el(".label", view.stable), el(".soft", `${count(view.requests.stable)} requests`)),
      el(".share", { "data-part": "weight" }, el("span", view.weight.replace("%", "\u202f%")), el("small", "to the canary")),
      el("div", el(".who.canary", "Canary"), el(".label", view.canary), el(".soft", `${count(view.requests.canary)} requests`))),
    el(".bar", { role: "img", "aria-label": `The canary has ${view.weight}` }, el("span", { "data-share": weight, "data-none": weight === 0 })),
    view.gains.length > 0 && el("p.soft", { "data-part": "gains" }, `The canary may ${view.gains.join(", ")}, and stable may not.`),
    ladder(view, why),
    verdict(view, why),
    charts(view),
    shadow(view),
    details(view, why));
}

function buttons(view) {
  if (view.state === "promoted") return [["rollback", "Roll back", ".danger"]];
  if (view.state === "rolled-back") return [["resume", "Resume", ".main"]];
  if (view.state === "abandoned") return [];
  if (view.state === "waiting") return [["approve", "Approve", ".main"]];
  return [
    view.steps?.length > 0 && view.state !== "paused" && ["pause", "Pause", ""],
    view.state === "paused" && ["resume", "Resume", ".main"],
    ["weight", "Set weight", ""],
    ["promote", "Promote", ""],
    ["rollback", "Roll back", ".danger"],
  ].filter(Boolean);
}

/** The steps: those that are done, the one under way with its time, those to come. */
function ladder({ steps = [], step, hold_left_seconds: rest, state }) {
  if (!steps.length) return null;
  const at = state === "promoted" ? steps.length : step - 1;
  return el("ol.ladder", { "aria-label": "Steps" }, steps.map(({ stage, hold_seconds: hold }, index) => {
    const now = index === at && !OVER.includes(state);
    const left = now && typeof rest === "number" ? Math.max(0, rest - since()) : null;
    const share = left === null || hold === 0 ? null : 1 - left / hold;
    const text = !now ? `${index < at ? "held" : "holds"} ${long(hold)}`
      : state === "paused" ? "paused" : left > 0 ? `${long(left)} left` : state === "stalled" ? "too little traffic" : "waits for evidence";
    return el(`li${index < at ? ".done" : now ? ".now" : ""}`,
      { "data-key": String(index), "aria-current": now ? "step" : null, "data-share": share },
      el("b", stage.replace("%", "\u202f%")), text);
  }));
}

/** Seconds since the status was asked for. */
const since = () => (performance.now() - known.at) / 1000;

const CONCLUSIONS = {
  worse: ["Worse", ".bad"], "not-worse": ["Not worse", ".good"], undecided: ["Not decided yet", ""],
};

/** What is known of the canary, in a sentence. */
function verdict(view, why) {
  const said = { "rolled-back": ["Rolled back", "bad"], abandoned: ["Given up", "bad"], paused: ["Paused", "warn"], waiting: ["Waits for approval", "warn"] }[view.state];
  if (said && view.why) return el(`.verdict.${said[1]}`, { "data-part": "verdict" }, el("strong", said[0]), el("span", view.why));
  const { conclusion } = why.verdict ?? {};
  if (!conclusion || OVER.includes(view.state)) return null;
  const [words, style] = CONCLUSIONS[conclusion] ?? [conclusion, ""];
  return el(`.verdict${style}`, { "data-part": "verdict" }, el("strong", words),
    el("span", why.sentences.length > 0 ? why.sentences.join(" ") : "The judge has nothing to say yet."));
}

/** What each signal shows, and what the file says. */
function details(view, { verdict: judged }) {
  return el("details", { "data-key": "more" },
    el("summary", "Details"),
    judged && el(".scroll", el("table",
      el("thead", el("tr", ["Signal", "Stable", "Canary", "Difference", "At most"].map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", judged.evidence.map((one) => el("tr", { "data-key": one.signal }, [
        ["Signal", one.signal.replace("_", " ")], ["Stable", arm(one, one.stable)], ["Canary", arm(one, one.canary)],
        ["Difference", `${signed(one.estimate)} (${signed(one.interval[0])} to ${signed(one.interval[1])})`],
        ["At most", signed(one.threshold)],
      ].map(([name, text]) => el("td", { "data-name": name }, el("span", text)))))))),
    el("dl.figures",
      [["In this state since", new Date(view.since).toLocaleString("en-GB")], ["Weight in the file", view.weight_in_file],
        ["Users are told apart by", view.key.join(", then ")], ["Salt", view.salt]]
        .map(([name, value]) => el("div", el("dt", name), el("dd", value)))));
}

/** What the canary did beside stable, where it ran as its shadow. */
function shadow(view) {
  const found = known.shadows.get(view.name);
  if (!found) return null;
  const agreement = found.agreement === null ? "Nothing has been compared yet."
    : `${(found.agreement * 100).toFixed(2)} % of ${plural(found.compared, "request")} agree.`;
  const list = (name, counts, word) => counts.length > 0 && el("p", el("span.soft", `${name}: `),
    counts.map((one) => `${one[word]} ${count(one.requests)}`).join(", "));
  return el(".shadow", { "data-key": "shadow" },
    el("p", el("strong", "In the shadow of stable"), found.running ? `, on ${found.sample} of the requests, within ${found.cpu} of a core. ` : ", until it was ended. ", agreement),
    list("Differences", found.differences, "kind"),
    list("Not compared", found.skipped, "reason"),
    found.examples.length > 0 && el("details", el("summary", `Examples (${found.examples.length})`),
      el("ul", found.examples.map((example) => el("li",
        el("p", el("code", `${example.method} ${example.path}`), el("span.soft", ` ${clock(example.time)}, request ${example.request_id}`)),
        el("ul", example.differences.map((one) => el("li",
          `${one.kind}${one.name ? ` ${one.name}` : ""} in ${one.phase}: stable ${one.stable ?? "nothing"}, canary ${one.canary ?? "nothing"}`)),
        example.failure && el("li", `canary failed: ${example.failure}`)))))));
}

/** A track's figure, in its unit. */
function arm({ signal }, of) {
  if (!of) return "–";
  if (typeof of.events === "number") return `${percent(of.value)} (${count(of.events)} of ${count(of.requests)})`;
  return `${signal.endsWith("memory") ? size(of.value) : brief(of.value)} (${plural(of.requests, "request")})`;
}

const percent = (ratio) => `${(ratio * 100).toFixed(2)} %`;
const signed = (ratio) => `${ratio > 0 ? "+" : ratio < 0 ? "−" : ""}${percent(Math.abs(ratio))}`;

const CHARTS = [
  ["traffic", "Requests per second"],
  ["failures", "Share that failed, with its 99 % interval"],
  ["latency", "How long they took; dashed: p99"],
];

function charts(view) {
  return el(".charts", CHARTS.map(([kind, caption]) =>
    el("figure", { "data-key": kind },
      el("figcaption", caption),
      el(".chart", { "data-key": "chart", "data-keep": true, "data-chart": kind }))));
}

function filters(status) {
  const rows = components(status).flatMap((filter) => filter.versions.map((version) => ({ filter, version })));
  if (!rows.length) return el("p.soft", "The configuration has neither filters nor functions.");
  const columns = ["Name", "Version", "Calls per second", "Failures", "p50", "p99", "Instances", "Memory"];
  return el(".scroll", el("table",
    el("thead", el("tr", columns.map((name, index) => el(`th${index > 1 && index !== 3 ? ".figure" : ""}`, { scope: "col" }, name)))),
    el("tbody", rows.map(({ filter, version }) => {
      const cells = [
        [filter.name], [el("span.label", version.label), el(`span.badge.${version.role}`, version.role === "none" ? "idle" : version.role),
          version.quarantined && el("span.badge.bad", { title: version.quarantined }, "quarantine")],
        [perSecond(filter, version)], [kinds(version)], [brief(version.calls?.p50_seconds)], [brief(version.calls?.p99_seconds)],
        [count(version.instances)], [size(version.memory_bytes)],
      ];
      return el("tr", { "data-key": `${filter.name} ${version.label}` }, cells.map((cell, index) =>
        el(`td${index > 1 && index !== 3 ? ".figure" : ""}`, { "data-name": columns[index] }, el("span", cell))));
    }))));
}

/** Filters, and functions, whose calls only the metrics have. */
const components = (status) => [...status.filters, ...status.functions];

function perSecond(filter, version) {
  if (!version.calls) return "–";
  const before = known.before?.calls.get(`${filter.name} ${version.label}`);
  const seconds = (known.at - (known.before?.at ?? known.at)) / 1000;
  return before === undefined || seconds <= 0 ? "–" : rate(Math.max(0, version.calls.total - before) / seconds);
}

function kinds(version) {
  if (!version.calls) return "–";
  const failed = Object.entries(version.calls.failures);
  return failed.length ? el("span.kinds", failed.map(([kind, number]) => `${kind} ${count(number)}`).join(", ")) : el("span.soft", "none");
}

function gateway(status) {
  const { last_reload: reload } = status;
  const outcome = { swapped: "good", refused: "bad", unchanged: "" }[reload.outcome] ?? "";
  return [
    el("div", { "data-key": "reload" }, el("h3", "Last reload"),
      el("p", el(`span.badge.${outcome}`, reload.outcome), ` ${clock(reload.time)}, by ${reload.actor}`)),
    el("div", { "data-key": "snapshots" }, el("h3", "Old snapshots"),
      status.draining.length
        ? el("ul", status.draining.map((old) => el("li", `Generation ${old.generation}: ${plural(old.requests, "request")} `,
          old.overdue && el("span.badge.bad", "overdue"))))
        : el("p", "None: every request reads the current one.")),
    el("div", { "data-key": "quarantine" }, el("h3", "Quarantine"),
      status.quarantine.length
        ? el("ul", status.quarantine.map((held) => el("li", { "data-key": held.version },
          el("p", `${held.filter} `, el("span.label", held.version)), el("p.soft", held.why),
          el("button", { type: "button", "data-action": "release", "data-version": held.version, "aria-label": `Release ${held.version}` }, "Release"))))
        : el("p", "Empty.")),
    el("div", { "data-key": "cache" }, el("h3", "Compiled components"),
      el("p", `${count(status.cache.hits)} from the cache, ${count(status.cache.misses)} compiled in ${long(status.cache.compile_seconds)}`)),
  ];
}

/** Merges the audit log, which goes back further, with the notices, which also tell of refused reloads, verdicts, drains. */
function activity() {
  const merged = new Map();
  for (const one of [...known.audit, ...known.notices]) {
    const key = `${one.time} ${one.subject} ${one.action}`;
    merged.set(key, { key, time: one.time, text: one.text ?? sentence(one) });
  }
  const all = [...merged.values()].sort((a, b) => (a.time < b.time ? 1 : a.time > b.time ? -1 : 0));
  if (!all.length) return [el("li", el("span"), el("span.soft", "Nothing yet."))];
  return all.slice(0, ACTIVITY_MAX).map(({ time, key, text }) =>
    el("li", { "data-key": key }, el("time", { datetime: time, title: new Date(time).toLocaleString("en-GB") }, clock(time)), el("span.what", text)));
}

function sentence({ actor, action, subject, before, after }) {
  const change = before && after && before !== after ? `, ${before} → ${after}` : before || after ? `, ${after || before}` : "";
  return `${subject}: ${action}${change} (${actor})`;
}

// ---- charts -------------------------------------------------------------------------------------------------------

/** Puts the gateway's drawing into each chart that can be seen. */
async function draw() {
  const places = [...document.querySelectorAll("[data-chart]")].filter((place) => {
    const { top, bottom, width } = place.getBoundingClientRect();
    return width > 0 && bottom > -200 && top < innerHeight + 400;
  });
  await Promise.all(places.map(chart));
}

async function chart(place) {
  try {
    const { rollout: name } = place.closest("[data-rollout]").dataset;
    const width = Math.min(2000, Math.max(200, Math.round(place.clientWidth)));
    place.style.setProperty("--wide", width);
    const path = `${rolloutPath(name)}/chart?of=${place.dataset.chart}&span=${span}&width=${width}`;
    const text = await (await ask(path)).text();
    const drawn = new DOMParser().parseFromString(text, "image/svg+xml").documentElement;
    if (drawn.nodeName !== "svg") return;
    drawn.querySelectorAll("script, foreignObject").forEach((node) => node.remove());
    drawn.setAttribute("role", "img");
    drawn.setAttribute("aria-label", drawn.querySelector("title")?.textContent ?? "");
    place.replaceChildren(document.importNode(drawn, true));
  } catch (problem) {
    lost(problem);
  }
}

// ---- doing --------------------------------------------------------------------------------------------------------

const QUESTIONS = {
  promote: (view) => ["Promote the canary?", `Everybody gets the canary of “${view.name}”, as the new stable version.`, "Promote", "main"],
  rollback: (view) => ["Roll back?", `Everybody gets the stable version of “${view.name}” again, at once.`, "Roll back", "danger"],
  weight: (view) => ["Set the weight", `Of the users of “${view.name}”, ${view.weight} get the canary now. Raising it moves users only from stable to canary.`, "Set weight", "main"],
};

const CALLS = {
  promote: () => ["POST", "promote"],
  rollback: (form) => ["POST", "rollback", form.why.value.trim() ? { why: form.why.value.trim() } : {}],
  weight: (form) => ["PUT", "weight", { weight: `${form.weight.value.trim().replace("%", "").replace(",", ".")}%` }],
  pause: () => ["POST", "pause"],
  resume: () => ["POST", "resume"],
};

/** Asks whether it is meant, and names both versions. */
function confirm(action, view) {
  const [title, text, yes, style] = QUESTIONS[action](view);
  const dialog = $("ask");
  const form = dialog.querySelector("form");
  form.reset();
  $("ask-title").textContent = title;
  $("ask-text").textContent = text;
  $("ask-stable").textContent = view.stable;
  $("ask-canary").textContent = view.canary;
  $("ask-problem").textContent = "";
  $("ask-weight").hidden = action !== "weight";
  $("ask-why").hidden = action !== "rollback";
  form.weight.value = Number.parseFloat(view.weight);
  $("ask-yes").textContent = yes;
  $("ask-yes").className = style;
  form.onsubmit = async (event) => {
    event.preventDefault();
    $("ask-yes").disabled = true;
    try {
      await act(action, view, form);
      dialog.close();
    } catch (problem) {
      $("ask-problem").textContent = problem.message;
    } finally {
      $("ask-yes").disabled = false;
    }
  };
  dialog.showModal();
  if (action === "weight") form.weight.select();
}

async function act(action, view, form) {
  const [method, path, body] = CALLS[action](form);
  await ask(`${rolloutPath(view.name)}/${path}`, { method, body });
  await refresh();
}

function say(text) {
  $("said").textContent = text;
}

document.addEventListener("click", async ({ target }) => {
  const button = target.closest("[data-action]");
  if (!button) return;
  const { action } = button.dataset;
  const name = button.closest("[data-rollout]")?.dataset.rollout;
  const view = known.status?.rollouts.find((rollout) => rollout.name === name);
  try {
    if (action === "theme") theme(next());
    else if (action === "cancel") $("ask").close();
    else if (action === "release") {
      await ask(`/api/v1/quarantine/${encodeURIComponent(button.dataset.version)}`, { method: "DELETE" });
      await refresh();
    } else if (view && action === "approve") {
      const waiting = known.status.approvals.find((held) => held.rollout === name);
      if (waiting) await ask(`/api/v1/approvals/${encodeURIComponent(waiting.name)}`, { method: "POST", body: { version: waiting.version } });
      await refresh();
    } else if (view && action in QUESTIONS) confirm(action, view);
    else if (view) await act(action, view);
  } catch (problem) {
    children($("banners"), [el("pre.banner.bad", { role: "alert" }, problem.message)]);
  }
});

document.addEventListener("change", ({ target }) => {
  if (target.name === "span") {
    span = target.value;
    draw().catch(lost);
  }
});

// ---- theme --------------------------------------------------------------------------------------------------------

const THEMES = ["system", "light", "dark"];
const next = () => THEMES[(THEMES.indexOf(localStorage.getItem("lockgate-theme") ?? "system") + 1) % THEMES.length];

function theme(chosen) {
  const name = THEMES.includes(chosen) ? chosen : "system";
  localStorage.setItem("lockgate-theme", name);
  if (name === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  $("theme").textContent = `Theme: ${name}`;
}

// ---- following ----------------------------------------------------------------------------------------------------

function link(state, text) {
  const place = $("link");
  if (place.dataset.state !== state) {
    place.dataset.state = state;
    place.textContent = text;
  }
}

let following = false;

/** Says so where the gateway cannot be reached. That it refuses something is another matter. */
function lost(problem) {
  if (problem instanceof TypeError) link("lost", "connection lost");
}

let refreshing = null;

/** Asks for everything that changes. Calls that come while one is under way are answered by the one after it. */
async function refresh() {
  while (refreshing) await refreshing;
  refreshing = (async () => {
    const [status, audit] = await Promise.all([json("/api/v1/status"), json(`/api/v1/audit?last=${ACTIVITY_MAX}`)]);
    const shadowed = status.rollouts.filter(({ name, state }) => state === "shadowing" || known.shadows.has(name));
    const judged = status.rollouts.filter(({ verdict }) => verdict);
    const whys = await Promise.all(judged.map(async ({ name }) => [name, await json(`${rolloutPath(name)}/why`).catch(() => null)]));
    const shadows = await Promise.all(shadowed.map(async ({ name }) =>
      [name, await json(`${rolloutPath(name)}/shadow`).catch(() => null)]));
    if (known.status && performance.now() - known.at > POLL_MS / 2) known.before = { at: known.at, calls: calls(known.status) };
    Object.assign(known, { status, audit, whys: new Map(whys), shadows: new Map(shadows), at: performance.now() });
    if (following) link("live", "live");
    show();
  })();
  try {
    await refreshing;
  } finally {
    refreshing = null;
  }
}

const calls = (status) => new Map(status.filters.flatMap((filter) =>
  filter.versions.map((version) => [`${filter.name} ${version.label}`, version.calls.total])));

/** Follows the events for as long as the page is there. `EventSource` could not send the token. */
async function follow() {
  // From as far back as the gateway remembers.
  let last = "0";
  for (;;) {
    try {
      const answer = await ask("/api/v1/events", { last });
      following = true;
      link("live", "live");
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      await refresh();
      for (let text = ""; ;) {
        const { value, done } = await reader.read();
        if (done) break;
        text += value;
        const blocks = text.split("\n\n");
        text = blocks.pop();
        const notices = blocks.map(notice).filter(Boolean);
        if (notices.length) {
          last = String(notices.at(-1).id);
          known.notices = [...known.notices, ...notices].slice(-ACTIVITY_MAX);
          // What is read out is news.
          if (Date.now() - Date.parse(notices.at(-1).time) < 10_000) say(notices.at(-1).text);
          await refresh();
          await draw();
        }
      }
    } catch {
      // The gateway is gone, or another one takes its place: told below, and tried again.
    }
    following = false;
    link("lost", "connection lost");
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

function notice(block) {
  const data = block.split("\n").find((line) => line.startsWith("data:"));
  return data && JSON.parse(data.slice(5));
}

async function repeat(work, millis) {
  for (;;) {
    if (!document.hidden) await work().catch(lost);
    await new Promise((resolve) => setTimeout(resolve, millis));
  }
}

theme(localStorage.getItem("lockgate-theme"));
follow();
repeat(refresh, POLL_MS);
repeat(draw, CHART_MS);
// What is left of a step goes down between two answers.
setInterval(() => document.hidden || show(), 1000);
addEventListener("resize", () => draw().catch(lost));
document.addEventListener("visibilitychange", () => document.hidden || refresh().catch(lost));
