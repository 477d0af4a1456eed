// Opens every page of the built site in both themes and two widths; prints what went wrong as JSON.
import fs from "node:fs";
import path from "node:path";
import { chromium } from "playwright-core";

const [site, screenshots, executablePath] = process.argv.slice(2);
const seen = { pages: 0, console: [], requests: [], wide: [] };

function pagesBelow(folder) {
  return fs.readdirSync(folder, { withFileTypes: true }).flatMap((entry) => {
    const place = path.join(folder, entry.name);
    if (entry.isDirectory()) return entry.name === "assets" ? [] : pagesBelow(place);
    return entry.name.endsWith(".html") && entry.name !== "404.html" ? [place] : [];
  });
}

const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--allow-file-access-from-files"] });
for (const colorScheme of ["light", "dark"]) {
  for (const width of [1280, 390]) {
    const context = await browser.newContext({ colorScheme, viewport: { width, height: 900 } });
    const page = await context.newPage();
    page.on("pageerror", (error) => seen.console.push(String(error)));
    page.on("request", (request) => {
      if (!/^(file|data|blob):/.test(request.url())) seen.requests.push(request.url());
    });
    for (const file of pagesBelow(site)) {
      const name = path.relative(site, file);
      await page.goto(`file://${file}`);
      const over = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
      if (over > 1) seen.wide.push(`${name} at ${width}: ${over}`);
      seen.pages += 1;
      const shot = `${name.replaceAll("/", "-")}-${colorScheme}-${width}.png`;
      await page.screenshot({ path: path.join(screenshots, shot) });
    }
    await context.close();
  }
}
await browser.close();
console.log(JSON.stringify(seen));
