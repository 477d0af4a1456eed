// Opens pages whose every name is an attack, with their security policy switched off, so that escaping alone stands in
// the way, opens whatever can be opened on them, and prints, as JSON, what came of it.
// node visit_hostile.js FOLDER CHROMIUM
import { readdirSync } from "node:fs";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { chromium } from "playwright-core";

const [folder, executablePath] = process.argv.slice(2);
const seen = { console: [], requests: [], alerts: [], pages: {} };

const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
try {
  for (const name of readdirSync(folder).filter((each) => each.endsWith(".html"))) {
    const context = await browser.newContext({ bypassCSP: true });
    const page = await context.newPage();
    page.setDefaultTimeout(5000);
    page.on("console", (message) => seen.console.push(`${name}: ${message.text()}`));
    page.on("pageerror", (error) => seen.console.push(`${name}: ${error.message}`));
    page.on("request", (request) => seen.requests.push(request.url()));
    page.on("dialog", async (dialog) => {
      seen.alerts.push(`${name}: ${dialog.message()}`);
      await dialog.dismiss();
    });
    await page.goto(pathToFileURL(resolve(join(folder, name))).href);
    await page.evaluate(() => document.querySelectorAll("details").forEach((each) => { each.open = true; }));
    const number = page.locator("tbody td button").first();
    if (await number.count()) await number.click();
    for (const image of await page.locator("img:visible").all()) await image.hover();
    seen.pages[name] = await page.evaluate(() => ({
      text: document.body.innerText,
      title: document.title,
      scripts: document.scripts.length,
      pictures: [...document.images].map((each) => each.src.slice(0, 22)),
      links: [...document.links].map((each) => each.getAttribute("href")),
      handlers: [...document.querySelectorAll("*")].flatMap((each) => each.getAttributeNames()).filter((each) => each.startsWith("on")),
    }));
    await context.close();
  }
} finally {
  await browser.close();
}
process.stdout.write(JSON.stringify(seen));
