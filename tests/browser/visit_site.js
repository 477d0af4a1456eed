// Uses the benchmark's pages as a reader would and prints, as JSON, what it saw; test_site_in_browser.py judges it.
// node visit_site.js SITE SCREENSHOTS CHROMIUM
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { chromium } from "playwright-core";

const [site, screenshots, executablePath] = process.argv.slice(2);
const address = (name) => pathToFileURL(resolve(site, name)).href;
const seen = { console: [], requests: [], alerts: [] };

async function open(browser, name, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, colorScheme: "light", ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(5000);
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) seen.console.push(`${name}: ${message.text()}`);
  });
  page.on("pageerror", (error) => seen.console.push(`${name}: ${error.message}`));
  page.on("request", (request) => seen.requests.push(request.url()));
  page.on("dialog", async (dialog) => {
    seen.alerts.push(`${name}: ${dialog.message()}`);
    await dialog.dismiss();
  });
  await page.goto(address(name));
  return page;
}

const rowHeads = (page) => page.locator(".grid tbody tr:visible > th:first-child").allInnerTexts();
const headOf = (page, text) => page.locator(".sorters th", { hasText: text });
const background = (page) => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
const tooWide = (page) => page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);

async function sorting(page) {
  const found = [{ rows: await rowHeads(page) }];
  const head = headOf(page, "i-BAU ASR");
  for (let press = 0; press < 3; press += 1) {
    await head.locator("button").focus();
    await page.keyboard.press("Enter");
    found.push({
      rows: await rowHeads(page),
      order: await head.getAttribute("aria-sort"),
      others: await page.locator('.sorters [aria-sort]:not([aria-sort="none"])').count(),
    });
  }
  const sparse = headOf(page, "FP ACC").locator("button");
  await sparse.click();
  const gapsUp = await rowHeads(page);
  await sparse.click();
  const gapsDown = await rowHeads(page);
  await sparse.click();
  await page.locator(".sorters th.corner button").dblclick();
  return { found, gapsUp, gapsDown, namesDown: await rowHeads(page) };
}

async function filtering(page) {
  const state = async () => ({
    rows: await rowHeads(page),
    columns: await page.locator(".grid .group:visible").allInnerTexts(),
    widths: await page.locator(".grid .group:visible").evaluateAll((heads) => heads.map((head) => head.colSpan)),
    values: await page.locator(".sorters [data-col]:visible").count(),
    shown: await page.locator("#shown").innerText(),
  });
  const found = { all: await state() };
  await page.locator("#find").fill("badnets I-BAU");
  found.both = await state();
  await page.locator("#find").fill("no such thing");
  found.nothing = await state();
  await page.locator("#find").fill("");
  await page.locator('select[data-axis="attack"]').selectOption("WaNet");
  await page.locator('select[data-axis="defense"]').selectOption("NPD");
  found.selected = await state();
  await page.locator('select[data-axis="attack"]').selectOption("");
  await page.locator('select[data-axis="defense"]').selectOption("");
  found.back = await state();
  return found;
}

async function narrowing(browser) {
  const page = await open(browser, "sweep-n_clean.html");
  const widths = () => page.locator(".grid thead tr:first-child .group:visible").evaluateAll((heads) => heads.map((head) => head.colSpan));
  const found = { before: await widths() };
  await page.locator('select[data-axis="defense"]').selectOption("NPD");
  found.after = await widths();
  return found;
}

async function provenance(page) {
  const number = page.locator("tbody tr", { hasText: "WaNet" }).locator("td", { hasText: "(2 of 3)" }).first().getByRole("button");
  await number.click();
  const dialog = page.locator("dialog:popover-open");
  const found = { text: await dialog.innerText(), name: await dialog.locator("h2").innerText() };
  found.ids = await dialog.locator(".record-id").allInnerTexts();
  found.focusInside = await page.evaluate(() => document.activeElement.closest("dialog") !== null);
  await page.screenshot({ path: join(screenshots, "dialog.png") });
  await page.keyboard.press("Escape");
  found.openAfterEscape = await page.locator("dialog:popover-open").count();
  found.focusBack = await number.evaluate((element) => element === document.activeElement);
  return found;
}

async function drawings(page) {
  return page.locator("svg.chart").evaluateAll((charts) => charts.map((chart) => ({
    width: chart.getBoundingClientRect().width,
    height: chart.getBoundingClientRect().height,
    shapes: [...chart.querySelectorAll(".mark, .bar-fill, .series")].filter((shape) => {
      const box = shape.getBoundingClientRect();
      return box.width + box.height > 0 && getComputedStyle(shape).fill + getComputedStyle(shape).stroke !== "nonenone";
    }).length,
    escaping: [...chart.querySelectorAll("text, .mark")].filter((part) => {
      const [inner, outer] = [part.getBoundingClientRect(), chart.getBoundingClientRect()];
      return inner.left < outer.left - 1 || inner.right > outer.right + 1 || inner.bottom > outer.bottom + 1;
    }).map((part) => part.textContent),
  })));
}

async function colours(browser) {
  const page = await open(browser, "table01.html");
  const found = { light: await background(page) };
  await page.locator("#theme").click();
  found.toggled = await background(page);
  await page.reload();
  found.reloaded = await background(page);
  const dark = await open(browser, "table01.html", { colorScheme: "dark" });
  found.dark = await background(dark);
  await dark.screenshot({ path: join(screenshots, "dark.png"), fullPage: true });
  return found;
}

async function sticking(browser) {
  const page = await open(browser, "table01.html", { viewport: { width: 375, height: 700 } });
  const corner = page.locator(".grid tbody th.corner").first();
  const before = (await corner.boundingBox()).x;
  await page.locator(".grid-frame").evaluate((frame) => { frame.scrollLeft = 300; });
  const moved = await page.locator(".grid-frame").evaluate((frame) => frame.scrollLeft);
  return { moved, shift: (await corner.boundingBox()).x - before };
}

async function onPhone(browser, names) {
  const found = {};
  for (const name of names) {
    const page = await open(browser, name, { viewport: { width: 375, height: 812 }, isMobile: true, deviceScaleFactor: 2 });
    found[name] = await tooWide(page);
    await page.screenshot({ path: join(screenshots, `phone-${name}.png`), fullPage: true });
  }
  return found;
}

async function withoutScript(browser) {
  const page = await open(browser, "table01.html", { javaScriptEnabled: false });
  await page.locator("tbody td button").first().click();
  return {
    dialogs: await page.locator("dialog:popover-open").count(),
    controls: await page.locator(".controls:visible, #theme:visible").count(),
  };
}

async function hostile(browser) {
  const page = await open(browser, "img-src-x-onerror-alert-1.html");
  await page.locator("tbody td button").first().click();
  const text = await page.locator("body").innerText();
  await page.screenshot({ path: join(screenshots, "hostile.png") });
  return { images: await page.locator("img").count(), text };
}

async function switches(page) {
  const count = () => page.locator(".cited-line:visible").count();
  const found = { before: await count() };
  await page.locator("#with-paper").uncheck();
  found.after = await count();
  await page.locator("#with-paper").check();
  return found;
}

const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
try {
  const page = await open(browser, "table01.html");
  await page.screenshot({ path: join(screenshots, "light.png"), fullPage: true });
  seen.sorting = await sorting(page);
  seen.filtering = await filtering(page);
  seen.narrowing = await narrowing(browser);
  seen.switches = await switches(page);
  seen.provenance = await provenance(page);
  seen.drawings = {};
  const names = ["table01.html", "table09.html", "sweep-n_clean.html", "sweep-site.html"];
  for (const name of names) {
    const other = await open(browser, name);
    seen.drawings[name] = await drawings(other);
    await other.screenshot({ path: join(screenshots, `light-${name}.png`), fullPage: true });
  }
  const index = await open(browser, "index.html");
  await index.screenshot({ path: join(screenshots, "index.png"), fullPage: true });
  await index.getByRole("link", { name: "Table 1" }).click();
  seen.followed = page.url() === index.url();
  seen.colours = await colours(browser);
  seen.sticking = await sticking(browser);
  seen.phone = await onPhone(browser, ["index.html", ...names, "img-src-x-onerror-alert-1.html"]);
  seen.withoutScript = await withoutScript(browser);
  seen.hostile = await hostile(browser);
} finally {
  await browser.close();
}
process.stdout.write(JSON.stringify(seen));
