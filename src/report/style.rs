//! How a page looks: light, dark, and on paper.

pub(super) const CSS: &str = "\
:root{--fg:#1d232b;--bg:#fff;--soft:#5b6672;--rule:#d8dde3;--c0:#1f5fd0;--c1:#c2410c;--c2:#15803d;--c3:#8b2fc9;--c4:#0e7490;--c5:#a16207}
@media (prefers-color-scheme:dark){:root{--fg:#e4e8ec;--bg:#14181d;--soft:#9aa5b1;--rule:#363f49;--c0:#74a7ff;--c1:#ff9d66;--c2:#5fd38a;--c3:#d29bff;--c4:#5ccfe6;--c5:#e6c04f}}
@media print{:root{--fg:#000;--bg:#fff;--soft:#444;--rule:#bbb;--c0:#1f5fd0;--c1:#c2410c;--c2:#15803d;--c3:#8b2fc9;--c4:#0e7490;--c5:#a16207}
figure,table{break-inside:avoid}h2{break-after:avoid}}
body{margin:0;color:var(--fg);background:var(--bg);font:16px/1.5 system-ui,sans-serif;-webkit-print-color-adjust:exact;print-color-adjust:exact}
main{max-width:54rem;margin:0 auto;padding:1.5rem}
h1{font-size:1.6rem;line-height:1.25;margin:0 0 1rem}h2{font-size:1.2rem;margin:2rem 0 .5rem}
p.lead{font-size:1.1rem;font-weight:600;border-left:.25rem solid var(--c0);padding-left:.75rem}
.wide{overflow-x:auto}table{border-collapse:collapse;margin:.75rem 0;font-variant-numeric:tabular-nums;font-size:.9rem}
caption{text-align:left;color:var(--soft);padding:.25rem 0}
th,td{padding:.2rem .75rem .2rem 0;border-bottom:1px solid var(--rule);text-align:right;vertical-align:top}
th:first-child,td:first-child{text-align:left}th{overflow-wrap:anywhere;color:var(--soft);font-weight:600;vertical-align:bottom}
figure{margin:1rem 0}figcaption{font-weight:600}.key{display:flex;flex-wrap:wrap;gap:.25rem 1.25rem;color:var(--soft);font-size:.85rem}
.key i{display:inline-block;width:.8rem;height:.8rem;margin-right:.4rem;vertical-align:-.05rem;background:currentColor}
svg{display:block;width:100%;height:auto}svg text{fill:var(--soft);font:12px system-ui,sans-serif}
.grid{stroke:var(--rule);stroke-width:1}.line{fill:none;stroke:currentColor;stroke-width:2;stroke-linejoin:round}.mark{fill:currentColor}
.c0{color:var(--c0)}.c1{color:var(--c1)}.c2{color:var(--c2)}.c3{color:var(--c3)}.c4{color:var(--c4)}.c5{color:var(--c5)}.c6{color:var(--fg)}
footer{margin-top:2rem;color:var(--soft);font-size:.8rem}
";
