"use strict";
(() => {
  const jobs = JSON.parse(document.getElementById("jobs").textContent);
  const [SEQ, SLOT, START, RUN, OUTCOME, INPUT] = [0, 1, 2, 3, 4, 5];
  const NAMES = ["succeeded", "failed", "died", "panicked", "timed out", "stopped"];
  const slots = jobs.reduce((max, job) => Math.max(max, job[SLOT]), 1);
  const end = jobs.reduce((max, job) => Math.max(max, job[START] + job[RUN]), 1);
  const LEFT = 34, BOTTOM = 22, FONT = "12px system-ui, sans-serif";
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);
  const time = (ms) => ms < 1000 ? `${+ms.toPrecision(3)} ms`
    : ms < 100e3 ? `${+(ms / 1e3).toPrecision(3)} s`
    : ms < 6e6 ? `${+(ms / 60e3).toPrecision(3)} min` : `${+(ms / 3.6e6).toPrecision(3)} h`;

  // A canvas with a pixel of its own for each of the screen's, and its size in CSS pixels.
  function sheet(id, height) {
    const canvas = document.getElementById(id), ratio = window.devicePixelRatio || 1;
    const width = canvas.clientWidth;
    canvas.style.height = `${height}px`;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    pen.font = FONT;
    return { canvas, pen, width, height };
  }

  // Round steps, so many that their names do not touch.
  function ticks(max, width) {
    const least = max / Math.max(1, Math.floor(width / 80));
    const power = 10 ** Math.floor(Math.log10(least));
    const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= least);
    const all = [];
    for (let at = 0; at <= max * 1.0001; at += step) all.push(at);
    return all;
  }

  const rowOf = (height) => (height - BOTTOM) / slots;

  function timeline() {
    const row = Math.max(4, Math.min(22, 420 / slots));
    const { pen, width, height } = sheet("timeline", row * slots + BOTTOM);
    const scale = (width - LEFT - 8) / end;
    pen.strokeStyle = colour("--line");
    pen.fillStyle = colour("--dim");
    pen.textAlign = "center";
    for (const at of ticks(end, width - LEFT)) {
      const x = LEFT + at * scale;
      pen.beginPath();
      pen.moveTo(x, 0);
      pen.lineTo(x, height - BOTTOM);
      pen.stroke();
      const text = time(at), half = pen.measureText(text).width / 2;
      pen.fillText(text, Math.min(Math.max(x, half + 2), width - half - 2), height - 7);
    }
    pen.textAlign = "right";
    const every = Math.ceil(14 / row);
    for (let slot = 1; slot <= slots; slot += every) {
      pen.fillText(slot, LEFT - 6, (slot - 0.5) * row + 4);
    }
    const gap = row > 8 ? 2 : 0.5;
    // Failures last: a bar of less than a pixel must not vanish under its neighbours.
    for (const failed of [false, true]) {
      for (const job of jobs) {
        if ((job[OUTCOME] !== 0) !== failed) continue;
        pen.fillStyle = palette[job[OUTCOME]];
        const long = job[RUN] * scale;
        const shown = Math.max(failed ? 2 : 0.6, long > 3 ? long - 0.7 : long);
        pen.fillRect(LEFT + job[START] * scale, (job[SLOT] - 1) * row + gap / 2, shown, row - gap);
      }
    }
  }

  function histogram() {
    const { pen, width, height } = sheet("histogram", 180);
    const runs = jobs.map((job) => Math.max(job[RUN], 0.01));
    if (runs.length === 0) return;
    // Four bins for each factor of ten.
    const bin = (run) => Math.floor(Math.log10(run) * 4 + 1e-9);
    const first = runs.reduce((min, run) => Math.min(min, bin(run)), Infinity);
    const last = runs.reduce((max, run) => Math.max(max, bin(run)), -Infinity);
    const bins = Array.from({ length: last - first + 1 }, () => NAMES.map(() => 0));
    jobs.forEach((job, n) => { bins[bin(runs[n]) - first][job[OUTCOME]] += 1; });
    const total = (counts) => counts.reduce((sum, count) => sum + count, 0);
    const most = bins.reduce((max, counts) => Math.max(max, total(counts)), 1);
    const TOP = 20, step = Math.min(80, (width - 16) / bins.length);
    bins.forEach((counts, n) => {
      const x = 8 + n * step;
      let y = height - BOTTOM;
      counts.forEach((count, outcome) => {
        const tall = count / most * (height - BOTTOM - TOP);
        if (count === 0) return;
        pen.fillStyle = palette[outcome];
        pen.fillRect(x + 1, y - Math.max(tall, 1), step - 2, Math.max(tall, 1));
        y -= Math.max(tall, 1);
      });
      pen.fillStyle = colour("--dim");
      pen.textAlign = "center";
      const count = String(total(counts));
      if (total(counts) > 0 && pen.measureText(count).width < step - 2) pen.fillText(count, x + step / 2, y - 5);
      pen.textAlign = "left";
      const name = time(10 ** ((first + n) / 4));
      const every = Math.ceil(70 / step);
      if (n % every === 0 && x + pen.measureText(name).width < width) pen.fillText(name, x, height - 7);
    });
  }

  // What is under the pointer, in words.
  function tell(event) {
    const canvas = document.getElementById("timeline"), box = canvas.getBoundingClientRect();
    const slot = Math.floor((event.clientY - box.top) / rowOf(box.height)) + 1;
    const scale = (box.width - LEFT - 8) / end;
    const at = (event.clientX - box.left - LEFT) / scale, near = 3 / scale;
    const away = (job) => Math.max(job[START] - at, at - job[START] - job[RUN], 0);
    let best = null;
    for (const job of jobs) {
      if (job[SLOT] === slot && away(job) <= near && (best === null || away(job) < away(best))) best = job;
    }
    document.getElementById("about").textContent = best === null ? "\u00a0"
      : `slot ${slot}: job ${best[SEQ]}, ${NAMES[best[OUTCOME]]} after ${time(best[RUN])}: ${best[INPUT]}`;
  }

  let palette = [];
  function draw() {
    palette = NAMES.map((_, n) => colour(`--o${n}`));
    timeline();
    histogram();
  }
  draw();
  window.addEventListener("resize", draw);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  document.getElementById("timeline").addEventListener("pointermove", tell);
})();
